//! Promise P4: a bad copy is made whole from a good one, verified, counted. Hundreds of random
//! ranges on one mirror are overwritten, files cut and deleted; every file must read back, and
//! what was read must lie whole on that mirror again, seen without mendfs.
//!
//! 64 MiB and hundreds of ranges by default, 1 GiB and 10,000 ranges with MENDFS_LONG=1.

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::content::{FileSet, Rng};
use common::disk::{damage, damage_random, expect_healed, segment_paths};
use common::status::wait_repaired;
use common::{Pool, drop_caches, long};

struct Scene {
    pool: Pool,
    set: FileSet,
    rng: Rng,
}

/// A pool with the file set in it, unmounted.
fn scene() -> Scene {
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create(2);
    let set = FileSet::plan(rng.next(), if long() { 1 << 30 } else { 64 << 20 });
    pool.mount();
    set.write(pool.mnt());
    pool.umount();
    Scene { pool, set, rng }
}

impl Scene {
    fn damage_segments(&mut self, mirror: usize) {
        let files = segment_paths(self.pool.mirror(mirror));
        damage_random(&files, if long() { 8000 } else { 500 }, &mut self.rng);
    }

    fn damage_file(&mut self, mirror: usize, name: &str) {
        let file = self.pool.mirror(mirror).join(name);
        damage_random(&[file], if long() { 1000 } else { 60 }, &mut self.rng);
    }

    /// Reads everything back, waits for the repairs, and looks at the healed mirror from outside.
    fn expect_mended(&mut self, healed: usize) {
        self.set.expect_whole(self.pool.mnt());
        let status = wait_repaired(&self.pool);
        assert!(status.repaired() > 0, "nothing counted: {}", status.text());
        assert_eq!(status.unrepairable(), 0, "{}", status.text());
        self.pool.umount();
        let good = 1 - healed;
        expect_healed(self.pool.mirror(good), self.pool.mirror(healed), &self.set);
        // The proof that it was made whole: the pool is complete without the other mirror.
        let away = self.pool.scratch().join("away");
        fs::rename(self.pool.mirror(good), &away).expect("rename");
        self.pool.mount();
        self.set.expect_whole(self.pool.mnt());
        self.pool.umount();
    }
}

#[test]
fn ten_thousand_damaged_ranges_on_an_unmounted_mirror() {
    let mut scene = scene();
    scene.damage_segments(0);
    scene.damage_file(0, "index");
    scene.damage_file(0, "journal");
    scene.pool.mount();
    scene.expect_mended(0);
}

#[test]
fn ten_thousand_damaged_ranges_under_a_mounted_pool() {
    let mut scene = scene();
    scene.pool.mount();
    scene.set.expect_whole(scene.pool.mnt());
    scene.damage_segments(1);
    scene.damage_file(1, "index");
    drop_caches();
    scene.set.expect_whole(scene.pool.mnt());
    let status = wait_repaired(&scene.pool);
    assert!(status.repaired() > 0 && status.unrepairable() == 0);
    scene.pool.umount();
    expect_healed(scene.pool.mirror(0), scene.pool.mirror(1), &scene.set);
    // Index pages that were cached, or read from the other mirror, are found by the check.
    let output = common::mendfs(["check", "--repair", &scene.pool.spec()]);
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{}",
        common::text(&output)
    );
    scene.pool.check_clean();
    fs::rename(scene.pool.mirror(0), scene.pool.scratch().join("away")).expect("rename");
    scene.pool.mount();
    scene.set.expect_whole(scene.pool.mnt());
}

#[test]
fn both_mirrors_damaged_in_different_places() {
    let mut scene = scene();
    // Stripes of 64 KiB in turns, so that no block is bad twice.
    const STRIPE: u64 = 65_536;
    for mirror in 0..2 {
        for file in segment_paths(scene.pool.mirror(mirror)) {
            let stripes = fs::metadata(&file).expect("stat").len() / STRIPE;
            for stripe in (mirror as u64..stripes).step_by(2) {
                let len = 1 + scene.rng.below(8192) as usize;
                let at = stripe * STRIPE + scene.rng.below(STRIPE - 8192);
                damage(&file, at, len, &mut scene.rng);
            }
        }
    }
    scene.pool.mount();
    scene.set.expect_whole(scene.pool.mnt());
    let status = wait_repaired(&scene.pool);
    assert!(
        status.repaired() > 0 && status.unrepairable() == 0,
        "{}",
        status.text()
    );
    scene.pool.umount();
    expect_healed(scene.pool.mirror(0), scene.pool.mirror(1), &scene.set);
}

fn cut(path: &Path, share: u64) {
    let file = File::options().write(true).open(path).expect("open");
    let len = file.metadata().expect("metadata").len();
    file.set_len(len / 100 * share).expect("ftruncate");
}

#[test]
fn truncated_and_deleted_segments_come_back() {
    let mut scene = scene();
    let files = segment_paths(scene.pool.mirror(0));
    for (number, file) in files.iter().enumerate() {
        match number % 3 {
            0 => fs::remove_file(file).expect("unlink"),
            1 => cut(file, 40),
            _ => cut(file, 0),
        }
    }
    scene.pool.mount();
    scene.expect_mended(0);
}

#[test]
fn segments_cut_and_deleted_under_a_mounted_pool_come_back() {
    let mut scene = scene();
    scene.pool.mount();
    scene.set.expect_whole(scene.pool.mnt());
    for (number, file) in segment_paths(scene.pool.mirror(1)).iter().enumerate() {
        if number % 2 == 0 {
            cut(file, 30);
        } else {
            fs::remove_file(file).expect("unlink");
        }
    }
    drop_caches();
    // A file that the process holds open still reads; what is gone shows after the remount.
    scene.set.expect_whole(scene.pool.mnt());
    wait_repaired(&scene.pool);
    scene.pool.remount();
    scene.set.expect_whole(scene.pool.mnt());
    wait_repaired(&scene.pool);
    scene.pool.umount();
    expect_healed(scene.pool.mirror(0), scene.pool.mirror(1), &scene.set);
}

#[test]
fn a_lost_index_comes_back() {
    type Loss = fn(&Path);
    let losses: [(&str, &[&str], Loss); 5] = [
        ("index deleted", &["index"], |path| {
            fs::remove_file(path).expect("unlink")
        }),
        ("index cut", &["index"], |path| cut(path, 50)),
        ("sums deleted", &["index.sums"], |path| {
            fs::remove_file(path).expect("unlink")
        }),
        ("journal deleted", &["journal"], |path| {
            fs::remove_file(path).expect("unlink")
        }),
        (
            "all three emptied",
            &["index", "index.sums", "journal"],
            |path| cut(path, 0),
        ),
    ];
    let scene = scene();
    for (what, names, lose) in losses {
        eprintln!("{what}");
        let mut pool = scene.pool.copy();
        for name in names {
            lose(&pool.mirror(1).join(name));
        }
        pool.mount();
        scene.set.expect_whole(pool.mnt());
        wait_repaired(&pool);
        pool.umount();
        // Whole again: this mirror alone gives everything.
        fs::rename(pool.mirror(0), pool.scratch().join("away")).expect("rename");
        pool.mount();
        scene.set.expect_whole(pool.mnt());
        pool.umount();
    }
}

#[test]
fn a_damaged_superblock_comes_back() {
    let scene = scene();
    for (what, len) in [("one slot", 4096), ("both slots", 8192)] {
        eprintln!("{what}");
        let mut pool = scene.pool.copy();
        let path = pool.mirror(0).join("mendfs.super");
        damage(&path, 0, len, &mut Rng::new(1));
        if len == 8192 {
            // Without a superblock the mirror is absent: the pool goes on without it, degraded.
            pool.mount();
            scene.set.expect_whole(pool.mnt());
            pool.umount();
        } else {
            pool.mount();
            scene.set.expect_whole(pool.mnt());
            pool.umount();
            pool.check_clean();
        }
    }
}

#[test]
fn a_damaged_journal_does_not_lose_what_fsync_acknowledged() {
    let mut rng = Rng::new(common::seed());
    for round in 0..4 {
        let mut pool = Pool::create(2);
        let set = FileSet::plan(rng.next(), 4 << 20);
        pool.mount();
        for file in &set.files {
            let handle = file.write(pool.mnt()).expect("the file is written");
            handle.sync_all().expect("fsync");
        }
        pool.kill9();
        let mirror = round % 2;
        damage_random(&[pool.mirror(mirror).join("journal")], 3000, &mut rng);
        if round >= 2 {
            damage_random(&segment_paths(pool.mirror(mirror)), 300, &mut rng);
        }
        pool.mount();
        set.expect_whole(pool.mnt());
        wait_repaired(&pool);
        pool.umount();
    }
}
