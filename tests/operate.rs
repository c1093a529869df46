//! What the operator sees, on real mounts: status, events, salvage and the ways out of damage,
//! metrics as promtool reads them, alerts.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::content::{BLOCK, FileSet, Rng, TestFile, block};
use common::disk::{Places, damage, locate};
use common::{MENDFS, Pool, mendfs, text, wait_for};
use serde_json::Value;

const BLOCKS: u64 = 40;
const NAMES: [&str; 3] = ["restored", "deleted", "salvaged"];

/// Three files, and where their blocks lie; unmounted.
fn scene() -> (Pool, FileSet, Places) {
    let mut rng = Rng::new(common::seed());
    let mut pool = Pool::create_with(2, &["--label", "home"]);
    let mut set = FileSet::plan(rng.next(), 1 << 20);
    set.files = NAMES
        .iter()
        .map(|name| TestFile {
            path: PathBuf::from(name),
            seed: rng.next(),
            len: BLOCKS as usize * BLOCK,
        })
        .collect();
    pool.mount();
    set.write(pool.mnt());
    pool.umount();
    let places = locate(pool.mirror(0), &set);
    (pool, set, places)
}

fn damage_block(pool: &Pool, places: &Places, file: usize, index: u64, mirrors: &[usize]) {
    for mirror in mirrors {
        for place in &places[&(file, index)] {
            let path = pool.mirror(*mirror).join(&place.segment);
            damage(&path, place.offset + 9, 100, &mut Rng::new(index));
        }
    }
}

fn read_all(pool: &Pool) {
    for name in NAMES {
        // Some cannot be read; that is what is to be seen.
        let _ = fs::read(pool.mnt().join(name));
        let _ = salvage(pool, name, &pool.scratch().join("unused"));
    }
}

fn salvage(pool: &Pool, name: &str, out: &Path) -> Output {
    let from = pool.mnt().join(name);
    mendfs([
        "salvage".as_ref(),
        "--force".as_ref(),
        "--json".as_ref(),
        from.as_os_str(),
        out.as_os_str(),
    ])
}

fn run(pool: &Pool, arguments: &[&str]) -> (Option<i32>, String) {
    let mut all: Vec<&std::ffi::OsStr> = arguments.iter().map(std::ffi::OsStr::new).collect();
    all.push(pool.mnt().as_os_str());
    let output = mendfs(all);
    let said = String::from_utf8(output.stdout.clone()).expect("text");
    assert!(output.stderr.is_empty(), "{}", text(&output));
    (output.status.code(), said)
}

fn events(pool: &Pool, options: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["events", "--json"];
    arguments.extend(options);
    let (code, said) = run(pool, &arguments);
    assert_eq!(code, Some(0));
    let lines = said.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn damage_is_named_and_each_way_out_of_it_works() {
    let (mut pool, set, places) = scene();
    for (file, index) in [(0, 3), (1, 5), (1, 6), (2, 10), (2, 30)] {
        damage_block(&pool, &places, file, index, &[0, 1]);
    }
    damage_block(&pool, &places, 0, 20, &[1]);
    pool.mount();
    assert_eq!(run(&pool, &["status"]).0, Some(0), "nobody has looked yet");
    read_all(&pool);
    for round in ["found", "after a remount"] {
        let (code, short) = run(&pool, &["status"]);
        assert_eq!(code, Some(1), "{round}: {short}");
        assert!(
            short.contains("state: DAMAGED") && short.contains("3 damaged files"),
            "{short}"
        );
        assert!(
            short.contains("pool: home") && short.contains("action: "),
            "{short}"
        );
        assert!(
            !short.contains('\x1b'),
            "colour without a terminal: {short}"
        );
        let (_, long) = run(&pool, &["status", "-v"]);
        for line in [
            "/restored: 4096 bytes at 12288",
            "/deleted: 8192 bytes at 20480",
            "/salvaged: 4096 bytes at 40960, 4096 bytes at 122880",
        ] {
            assert!(long.contains(line), "{round}: {long}");
        }
        if round == "found" {
            pool.remount();
        }
    }
    expect_events(&pool);

    fs::write(pool.mnt().join("restored"), content(&set, 0)).expect("restored over it");
    fs::remove_file(pool.mnt().join("deleted")).expect("deleted");
    let out = pool.scratch().join("out");
    let output = salvage(&pool, "salvaged", &out);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let lost = serde_json::json!([
        {"offset": 40960, "length": 4096},
        {"offset": 122_880, "length": 4096}
    ]);
    assert_eq!(report["mendfs"]["lost"], lost);
    let mut expected = content(&set, 2);
    for index in [10, 30] {
        expected[index * BLOCK..(index + 1) * BLOCK].fill(0);
    }
    assert!(
        fs::read(&out).expect("the copy") == expected,
        "what was salvaged"
    );
    let plain = mendfs([
        "salvage".as_ref(),
        pool.mnt().join("salvaged").as_os_str(),
        out.as_os_str(),
    ]);
    assert!(
        text(&plain).contains("is there already"),
        "{}",
        text(&plain)
    );
    fs::write(pool.mnt().join("salvaged"), &expected).expect("the copy over it");

    let (code, said) = run(&pool, &["status"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("state: healthy") && said.contains("No damaged files"),
        "{said}"
    );
    let left = events(&pool, &[]);
    assert!(
        left.iter()
            .all(|event| event["event"] != "damage" || event["fixed"] == true)
    );
    pool.remount();
    assert_eq!(run(&pool, &["status"]).0, Some(0));
}

fn content(set: &FileSet, file: usize) -> Vec<u8> {
    let seed = set.files[file].seed;
    (0..BLOCKS).flat_map(|index| block(seed, index)).collect()
}

fn expect_events(pool: &Pool) {
    let all = events(pool, &[]);
    let damage: Vec<_> = all
        .iter()
        .filter(|event| event["event"] == "damage")
        .collect();
    let count = |outcome: &str, path: &str| -> u64 {
        let of = damage
            .iter()
            .filter(|event| event["outcome"] == outcome && event["path"] == path);
        of.map(|event| event["count"].as_u64().expect("a count"))
            .sum()
    };
    assert_eq!(count("repaired", "/restored"), 1);
    assert_eq!(count("lost", "/restored"), 2, "on each mirror, once");
    assert_eq!(
        (count("lost", "/deleted"), count("lost", "/salvaged")),
        (4, 4)
    );
    for event in &damage {
        assert_eq!(event["fixed"], event["outcome"] == "repaired", "{event}");
        assert!(
            event["mirror"]
                .as_str()
                .expect("a mirror")
                .contains("mirror")
        );
    }
    assert_eq!(events(pool, &["--since", "1h"]).len(), all.len());
    assert_eq!(events(pool, &["--since", "2020-01-01"]).len(), all.len());
    assert!(events(pool, &["--since", "2999-01-01T00:00:00Z"]).is_empty());
    assert_eq!(events(pool, &["--limit", "2"]), all[all.len() - 2..]);
    let (_, said) = run(pool, &["events"]);
    assert_eq!(said.lines().count(), all.len());
    assert!(
        said.contains(" UTC  LOST          /deleted: 2 blocks on "),
        "{said}"
    );
}

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn events_are_followed() {
    let (mut pool, _, places) = scene();
    damage_block(&pool, &places, 0, 3, &[1, 0]);
    pool.mount();
    let child = Command::new(MENDFS)
        .args(["events", "--follow", "--json"])
        .arg(pool.mnt())
        .stdout(Stdio::piped())
        .spawn();
    let mut follower = Follower(child.expect("mendfs runs"));
    read_all(&pool);
    let lines = BufReader::new(follower.0.stdout.take().expect("piped")).lines();
    let found = lines
        .map(|line| line.expect("a line"))
        .find(|line| line.contains("\"lost\"") && line.contains("/restored"));
    assert!(found.is_some());
}

#[test]
fn a_status_that_cannot_be_told_exits_with_2() {
    let mut pool = Pool::create(2);
    let nowhere = mendfs(["status", "/proc"]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", text(&nowhere));
    pool.mount();
    pool.kill_only();
    let dead = mendfs(["status".as_ref(), pool.mnt().as_os_str()]);
    assert_eq!(dead.status.code(), Some(2), "{}", text(&dead));
    assert!(text(&dead).contains("the server of"), "{}", text(&dead));
    pool.detach();
}

fn promtool(arguments: &[&str], input: &str) -> Output {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("promtool of Debian's package prometheus");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

#[test]
fn metrics_are_what_promtool_and_the_rules_and_the_dashboard_expect() {
    let (mut pool, _, places) = scene();
    damage_block(&pool, &places, 0, 3, &[1, 0]);
    damage_block(&pool, &places, 0, 9, &[1]);
    pool.mount();
    read_all(&pool);
    let metrics = fs::read_to_string(pool.mnt().join(".mendfs/metrics")).expect("metrics");
    let output = promtool(&["check", "metrics"], &metrics);
    assert!(
        output.status.success() && output.stderr.is_empty() && output.stdout.is_empty(),
        "{}",
        text(&output)
    );
    for name in NAMES {
        assert!(!metrics.contains(name), "a file's name: {metrics}");
    }
    let known: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let monitoring = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/monitoring");
    for file in ["alerts.yml", "dashboard.json"] {
        let used = fs::read_to_string(monitoring.join(file)).expect(file);
        let words = used.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: BTreeSet<&str> = words.filter(|word| word.starts_with("mendfs_")).collect();
        assert!(names.len() > 5, "{file}: {names:?}");
        for name in names {
            assert!(known.contains(name), "{file}: there is no {name}");
        }
    }
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
        ["test", "rules", "scrub_test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(&monitoring)
            .output();
        let output = output.expect("promtool of Debian's package prometheus");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn the_operator_is_told_by_the_alert_command() {
    let (mut pool, _, places) = scene();
    damage_block(&pool, &places, 2, 3, &[1, 0]);
    damage_block(&pool, &places, 0, 9, &[1]);
    let (program, told) = (pool.scratch().join("tell"), pool.scratch().join("told"));
    let line = "$MENDFS_EVENT|$MENDFS_POOL|$MENDFS_MIRROR|$MENDFS_PATH|$1";
    let script = format!(
        "#!/bin/sh\n{{ echo \"{line}\"; cat; }} >> {}\n",
        told.display()
    );
    fs::write(&program, script).expect("the command");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let option = format!("alert={} to,alert_repaired=1", program.display());
    pool.mount_with(&option);
    read_all(&pool);
    let said = || fs::read_to_string(&told).unwrap_or_default();
    wait_for("the alerts", Duration::from_secs(30), || {
        said().contains("damaged|home||/salvaged|to\n") && said().contains("repaired|home|")
    });
    pool.umount();
    let said_json = said();
    let json = said_json.lines().filter(|line| line.starts_with('{'));
    for line in json {
        let event: Value = serde_json::from_str(line).expect("JSON");
        assert!(
            event["message"].is_string() && event["schema"] == 1,
            "{line}"
        );
    }
    fs::remove_file(&told).expect("unlink");
    fs::rename(pool.mirror(1), pool.scratch().join("away")).expect("rename");
    pool.mount_with(&option);
    wait_for("the alert", Duration::from_secs(30), || {
        said().contains(&format!("degraded|home|{}|", pool.mirror(1).display()))
    });
}

#[test]
fn a_new_mirror_tells_what_happened_before_it_came() {
    let (mut pool, _, places) = scene();
    damage_block(&pool, &places, 0, 3, &[1]);
    damage_block(&pool, &places, 1, 5, &[0, 1]);
    pool.mount();
    read_all(&pool);
    let before = events(&pool, &[]);
    assert!(!before.is_empty());
    let new = pool.scratch().join("new");
    fs::create_dir(&new).expect("mkdir");
    let arguments = ["mirror", "add", "--wait"].map(std::ffi::OsStr::new);
    let output = mendfs(
        arguments
            .into_iter()
            .chain([new.as_os_str(), pool.mnt().as_os_str()]),
    );
    // A pool with damage is not healthy, whatever is added.
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{}",
        text(&output)
    );
    pool.umount();
    let mut alone = Pool::of(common::scratch(), vec![new]);
    alone.mount();
    let after = events(&alone, &[]);
    for event in before.iter().filter(|event| event["event"] == "damage") {
        assert!(after.contains(event), "{event}\n{after:?}");
    }
    assert_eq!(run(&alone, &["status"]).0, Some(1));
    assert!(
        run(&alone, &["status", "-v"])
            .1
            .contains("/deleted: 4096 bytes at 20480")
    );
}
