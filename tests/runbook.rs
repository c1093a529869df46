//! Every example of the manuals is run: the commands in the displays of man/, on real mounts, in
//! the state that the page's source names above each display in a comment `scene: NAME`.
//!
//! Directories are replaced by those of the test. All happens in a mount namespace of its own
//! (scripts/with-helpers). What cannot run here says so in its comment, and is listed below.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{MENDFS, Pool, mendfs, scratch, text};
use serde_json::Value;

const PAGES: [&str; 6] = [
    "mendfs.5",
    "mendfs.7",
    "mendfs.8",
    "mkfs.mendfs.8",
    "fsck.mendfs.8",
    "mount.mendfs.8",
];

/// First lines of the examples that are not run, with the reason that stands in the page.
const NOT_RUN: [(&str, &str); 2] = [
    ("smartctl -H -A /dev/sdb", "there is no such disk"),
    (
        "/disk1/pool:/disk2/pool /home mendfs",
        "a line of fstab, which tests/service.rs takes",
    ),
];

/// Directories of the manuals, which become directories of the test.
const DIRECTORIES: [&str; 7] = [
    "/disk1",
    "/disk2",
    "/disk3",
    "/home",
    "/root",
    "/backup",
    "/usr/local/sbin",
];

/// What all scenes share: $1 is an empty directory. `run` takes a command of the manual; reports
/// on a pool that is not healthy, and of a file that is not whole, end with 1 as documented.
const PRELUDE: &str = r##"
set -u
fail() { echo "FAIL: $*"; exit 1; }
must() { "$@" || fail "$* ended with $?"; }
await() {
    for _ in $(seq 1200); do
        eval "$1" && return
        sleep 0.1
    done
    fail "waited for $1"
}
serving() { grep -lszFx -f <(printf '%s\n' "$1/home") /proc/[0-9]*/cmdline; }
run() {
    local status=0
    echo "# $1"
    eval "$1" || status=$?
    case $status:$1 in
        0:*) ;;
        1:mendfs\ status*|1:mendfs\ salvage*) ;;
        *) fail "$1 ended with $status" ;;
    esac
}
healthy() { mendfs status "$top/home" >/dev/null; }
top=$1
end() { umount -l "$top/home" 2>/dev/null; await '! serving "$top" >/dev/null'; }
trap end EXIT
mkdir -p "$top"/{disk1,disk2,disk3,home,root,backup} "$top/usr/local/sbin"
printf '#!/bin/sh\ncat >/dev/null\n' >"$top/usr/local/sbin/tell"
chmod 755 "$top/usr/local/sbin/tell"
spec=$top/disk1/pool:$top/disk2/pool
make() {
    mkdir "$top/disk1/pool" "$top/disk2/pool"
    must mendfs format --journal-size 4M "$top/disk1/pool" "$top/disk2/pool" >/dev/null
}
up() { must mount -t mendfs "$spec" "$top/home"; }
down() { must umount "$top/home"; await '! serving "$top" >/dev/null'; }
fill() {
    yes 'dear reader' | head -c 200000 >"$top/home/letters.db"
    cp "$top/home/letters.db" "$top/backup/letters.db"
}
# Overwrites what is found of a file in both mirrors.
spoil() {
    local segment
    for segment in $(grep -rlaF 'dear reader' "$top"/disk[12]/pool/segments); do
        dd if=/dev/urandom of="$segment" bs=1 count=5000 conv=notrunc status=none \
            seek="$(grep -aboF 'dear reader' "$segment" | head -n 1 | cut -d: -f1)"
    done
}
"##;

/// How each scene begins, and what must hold at its end.
fn scene(name: &str) -> (&'static str, &'static str) {
    match name {
        "no pool" => ("", "true"),
        "disks" => ("mkdir $top/disk1/pool $top/disk2/pool", "true"),
        "mounted" => ("make; up; fill", "healthy"),
        "unmounted" => ("make; up; fill; down", "true"),
        "failed" => (
            "make; up; fill; must mendfs mirror offline $top/disk2/pool $top/home; \
             date >$top/home/later; healthy && fail 'still healthy'",
            "healthy",
        ),
        "gone" => (
            "make; up; fill; rm -r $top/disk2/pool; date >$top/home/later; sync $top/home/later; \
             await '! healthy'",
            "healthy",
        ),
        "full" => (
            "mount -t tmpfs -o size=192M none $top/disk1; mount -t tmpfs -o size=192M none \
             $top/disk2; make; up; dd if=/dev/urandom \
             of=$top/home/old-films.tar bs=1M count=400 oflag=dsync 2>/dev/null && \
             fail 'not full'; \
             test -s $top/home/old-films.tar || fail 'nothing written'",
            "date >$top/home/again && sync $top/home/again",
        ),
        "split" => (
            "make; up; fill; down; must mount -t mendfs $top/disk1/pool $top/home; \
             date >$top/home/first; down; must mount -t mendfs $top/disk2/pool $top/home; \
             date >$top/home/second; down; \
             mount -t mendfs $spec $top/home 2>$top/said && fail 'mounted'; \
             grep -q split-brain $top/said || fail \"$(cat $top/said)\"",
            "await healthy; test -e $top/home/first -a ! -e $top/home/second",
        ),
        "damaged" => (
            "make; up; fill; down; spoil; up; \
             cat $top/home/letters.db >/dev/null 2>&1 && fail 'not damaged'; \
             await 'mendfs status $top/home | grep -q DAMAGED'",
            "await healthy",
        ),
        "killed" => (
            "make; up; fill; sync $top/home/letters.db; kill -9 $(serving $top | cut -d/ -f3); \
             await '! serving $top >/dev/null'; ls $top/home/other 2>/dev/null && fail 'alive'",
            "healthy && cmp $top/home/letters.db $top/backup/letters.db",
        ),
        other => panic!("no scene {other}"),
    }
}

/// A display of a page: its scene and its lines.
#[derive(Debug)]
struct Example {
    page: &'static str,
    scene: String,
    lines: Vec<String>,
}

impl Example {
    /// Commands of the example; none if it shows something else.
    fn commands(&self) -> impl Iterator<Item = &str> {
        let prompts = ["# ", "$ "];
        self.lines
            .iter()
            .filter_map(move |line| prompts.iter().find_map(|prompt| line.strip_prefix(prompt)))
    }
}

/// Displays in a page's source, with the comment before each.
fn examples(page: &'static str) -> Vec<Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(page);
    let source = fs::read_to_string(path).expect("the page");
    let mut found = Vec::new();
    let mut scene = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix(".\\\" scene: ") {
            name.clone_into(&mut scene);
        } else if line.starts_with(".Bd -literal") || line.starts_with(".Dl ") {
            let one = line.strip_prefix(".Dl ").map(str::to_owned);
            let lines = one.map_or_else(
                || {
                    let body = lines.by_ref().take_while(|line| *line != ".Ed");
                    body.map(str::to_owned).collect()
                },
                |line| vec![line],
            );
            found.push(Example {
                page,
                scene: std::mem::take(&mut scene),
                lines,
            });
        }
    }
    found
}

/// A command with the directories of the test.
fn placed(command: &str, top: &Path) -> String {
    let mut placed = String::new();
    let mut rest = command;
    'next: while let Some(first) = rest.chars().next() {
        let begins = placed.chars().last().is_none_or(|c| " :=".contains(c));
        for directory in DIRECTORIES {
            let behind = rest.strip_prefix(directory);
            let ends = |rest: &str| rest.chars().next().is_none_or(|c| " /:,".contains(c));
            if let Some(behind) = behind.filter(|behind| begins && ends(behind)) {
                let _ = write!(placed, "{}{directory}", top.display());
                rest = behind;
                continue 'next;
            }
        }
        placed.push(first);
        rest = &rest[first.len_utf8()..];
    }
    placed
}

fn run(example: &Example) {
    let dir = scratch();
    let (begin, end) = scene(&example.scene);
    let mut script = format!("{PRELUDE}\n{begin}\n");
    for command in example.commands() {
        let placed = placed(command, dir.path()).replace('\'', "'\\''");
        let _ = writeln!(script, "run '{placed}'");
    }
    let _ = writeln!(
        script,
        "{{ {end}; }} || fail 'not as it should be at the end'"
    );
    let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-helpers");
    let output = Command::new(helpers)
        .env("BINARY", MENDFS)
        .args(["bash", "-c", &script, "bash"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("with-helpers runs");
    assert!(
        output.status.success(),
        "{}, scene {}: {}",
        example.page,
        example.scene,
        text(&output)
    );
}

#[test]
fn every_example_is_run_or_listed_as_one_that_cannot_be() {
    let mut not_run = BTreeSet::new();
    let mut names = BTreeSet::new();
    for example in PAGES.into_iter().flat_map(examples) {
        let first = example.lines.first().expect("a line");
        assert!(!example.scene.is_empty(), "{}: {first}", example.page);
        match example.scene.strip_prefix("not run here, ") {
            None => {
                assert!(example.commands().count() > 0, "{}: {first}", example.page);
                scene(&example.scene);
                names.insert(example.scene);
            }
            Some(reason) => {
                let first = first.trim_start_matches("# ");
                let listed = NOT_RUN
                    .iter()
                    .find(|(line, why)| first.starts_with(line) && *why == reason);
                let listed = listed.unwrap_or_else(|| panic!("{first} ({reason}) is not listed"));
                not_run.insert(listed.0);
            }
        }
    }
    assert_eq!(not_run.len(), NOT_RUN.len(), "{not_run:?}");
    assert!(names.len() > 7, "{names:?}");
}

/// Runs the examples of a page that have one of these scenes, or any.
fn run_page(page: &'static str, scenes: &[&str]) {
    let mut count = 0;
    for example in examples(page) {
        let wanted = scenes.is_empty() || scenes.contains(&example.scene.as_str());
        if wanted && !example.scene.starts_with("not run here") {
            run(&example);
            count += 1;
        }
    }
    assert!(count > 0, "{page}");
}

#[test]
fn the_examples_of_the_commands_work() {
    for page in [
        "mendfs.8",
        "mkfs.mendfs.8",
        "fsck.mendfs.8",
        "mount.mendfs.8",
    ] {
        run_page(page, &[]);
    }
}

#[test]
fn the_runbook_works_for_what_is_looked_at_each_week() {
    run_page("mendfs.7", &["mounted", "unmounted"]);
}

#[test]
fn the_runbook_brings_a_lost_mirror_back() {
    run_page("mendfs.7", &["failed"]);
    run_page("mendfs.7", &["gone"]);
}

#[test]
fn the_runbook_makes_room_on_a_full_disk() {
    run_page("mendfs.7", &["full"]);
}

#[test]
fn the_runbook_ends_a_split_brain() {
    run_page("mendfs.7", &["split"]);
}

#[test]
fn the_runbook_ends_damage_and_what_a_crash_left() {
    run_page("mendfs.7", &["damaged"]);
    run_page("mendfs.7", &["killed"]);
}

/// Names of all members, at any depth.
fn members(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                into.insert(name.clone());
                members(value, into);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| members(value, into)),
        _ => {}
    }
}

#[test]
fn the_members_of_every_json_report_are_in_the_manual() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/mendfs.7");
    let page = fs::read_to_string(path).expect("the page");
    let start = page.find(".Sh JSON").expect("JSON");
    let end = page.find(".Sh RUNBOOK").expect("RUNBOOK");
    let told: BTreeSet<&str> = page[start..end]
        .lines()
        .filter(|line| line.starts_with(".Va "))
        .flat_map(str::split_whitespace)
        .collect();
    let mut pool = Pool::create(2);
    pool.mount();
    let mnt = pool.mnt().to_str().expect("text").to_owned();
    fs::write(pool.mnt().join("file"), vec![1; 100_000]).expect("write");
    let out = pool.scratch().join("out");
    let file = format!("{mnt}/file");
    let second = pool.mirror(1).to_str().expect("text").to_owned();
    let mut texts = Vec::new();
    for args in [
        vec!["mirror", "offline", "--json", &second, &mnt],
        vec!["mirror", "online", "--wait", "--json", &second, &mnt],
        vec!["scrub", "start", "--wait", "--json", &mnt],
        vec!["status", "--json", &mnt],
        vec!["salvage", "--json", &file, out.to_str().expect("text")],
        vec!["events", "--json", &mnt],
    ] {
        let output = mendfs(&args);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        texts.push(String::from_utf8(output.stdout).expect("text"));
    }
    pool.umount();
    texts.push(String::from_utf8(pool.check().stdout).expect("text"));
    let mut found = BTreeSet::new();
    for text in &texts {
        for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            members(&value.expect("JSON"), &mut found);
        }
    }
    assert!(found.len() > 60, "{found:?}");
    for name in &found {
        assert!(told.contains(name.as_str()), "{name} is not in mendfs(7)");
    }
}
