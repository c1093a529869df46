//! The manual says what the commands take: options and mount options in the man pages are those
//! of the parsers, and the README names commands that are there.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{MENDFS, Pool, mendfs, text};

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `--help` of a command, or of the program under another name.
fn help(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(MENDFS);
    let output = command.arg0(name).args(arguments).arg("--help").output();
    let output = output.expect("mendfs runs");
    assert!(output.status.success(), "{name}: {}", text(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Long options in a help text.
fn in_help(help: &str) -> BTreeSet<String> {
    let options = help
        .lines()
        .filter(|line| line.trim_start().starts_with('-'));
    options
        .flat_map(|line| line.split([' ', ',', '[']))
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| {
            word.trim_end_matches(|c: char| !c.is_alphanumeric())
                .to_owned()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Long options that an mdoc text lists in `.It` lines.
fn in_page(text: &str) -> BTreeSet<String> {
    let items = text.lines().filter(|line| line.starts_with(".It Fl"));
    items
        .flat_map(|line| line.split([' ', ',']))
        .filter_map(|word| word.strip_prefix('-'))
        .map(str::to_owned)
        .collect()
}

/// The part of mendfs(8) about one command.
fn command_part<'a>(page: &'a str, command: &str) -> &'a str {
    let start = page
        .find(&format!("\n.It Cm {command}\n"))
        .expect("the command");
    let rest = &page[start + 1..];
    let end = rest[1..].find("\n.It Cm ").map_or(rest.len(), |at| at + 1);
    &rest[..end]
}

/// What clap gives every command.
fn without_common(mut options: BTreeSet<String>) -> BTreeSet<String> {
    options.remove("help");
    options.remove("version");
    options
}

#[test]
fn the_page_of_each_program_lists_its_options() {
    for (name, file) in [
        ("mkfs.mendfs", "mkfs.mendfs.8"),
        ("fsck.mendfs", "fsck.mendfs.8"),
    ] {
        assert_eq!(in_page(&page(file)), in_help(&help(name, &[])), "{name}");
    }
}

#[test]
fn the_page_of_mendfs_lists_the_options_of_each_command() {
    let page = page("mendfs.8");
    let commands: [(&str, &[&str]); 8] = [
        ("format", &[]),
        ("mount", &[]),
        ("status", &[]),
        ("scrub", &["start", "pause", "resume", "cancel", "status"]),
        (
            "mirror",
            &["list", "add", "remove", "offline", "online", "replace"],
        ),
        ("events", &[]),
        ("salvage", &[]),
        ("check", &[]),
    ];
    for (command, subcommands) in commands {
        let told = in_page(command_part(&page, command));
        let mut taken = in_help(&help("mendfs", &[command]));
        for subcommand in subcommands {
            taken.extend(in_help(&help("mendfs", &[command, subcommand])));
        }
        let taken = without_common(taken);
        assert_eq!(told, taken, "{command}");
    }
}

#[test]
fn the_page_of_mendfs_names_every_command() {
    let help = help("mendfs", &[]);
    let section = help.split("Commands:").nth(1).expect("commands");
    let page = page("mendfs.8");
    let names = section
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with(' '));
    for line in names {
        let name = line.split_whitespace().next().expect("a name");
        if name != "help" {
            assert!(
                page.contains(&format!(".It Cm {name}\n")),
                "{name} is not in mendfs(8)"
            );
        }
    }
}

/// Mount options that mount.mendfs(8) names: `.It Cm` of its own, `.Cm` lists of the generic ones.
fn mount_options() -> BTreeSet<String> {
    let page = page("mount.mendfs.8");
    let start = page.find(".Sh OPTIONS").expect("OPTIONS");
    let end = page.find(".Sh EXIT STATUS").expect("EXIT STATUS");
    let mut names = BTreeSet::new();
    for line in page[start..end].lines() {
        let Some(list) = line.strip_prefix(".It Cm ").or(line.strip_prefix(".Cm ")) else {
            continue;
        };
        let list = list.split(" Ns ").next().unwrap_or(list);
        let words = list
            .split(" , ")
            .map(|word| word.trim().trim_end_matches(" ,"));
        names.extend(words.map(str::to_owned));
    }
    // Values of commit, and a prefix.
    for other in [
        "always", "none", "500ms", "5s", "interval", "x-", "s", "m", "h", "d", "w", "off",
    ] {
        names.remove(other);
    }
    names
}

/// What mendfs says about a mount option, on a pool that it cannot mount since there is none.
fn complaint(option: &str) -> String {
    let dir = common::scratch();
    let nowhere = dir.path().join("nowhere");
    let spec = format!("{0}:{0}2", nowhere.display());
    let mut command = Command::new(MENDFS);
    command
        .arg0("mount.mendfs")
        .arg(spec)
        .arg(dir.path())
        .args(["-o", option]);
    let output = command.output().expect("mendfs runs");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_mount_option_of_the_manual_is_known() {
    let names = mount_options();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let option = match name.as_str() {
            "commit" => "commit=1s".to_owned(),
            "cache" => "cache=64M".to_owned(),
            "scrub_interval" => "scrub_interval=30d".to_owned(),
            "scrub_rate" => "scrub_rate=50".to_owned(),
            _ => name.clone(),
        };
        let said = complaint(&option);
        assert!(!said.contains("unknown mount option"), "{name}: {said}");
    }
    assert!(complaint("frobnicate").contains("unknown mount option"));
}

#[test]
fn every_mount_option_of_the_parser_is_in_the_manual() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/options.rs");
    let source = fs::read_to_string(path).expect("the parser");
    let names = mount_options();
    let table = source.split("const GENERIC").nth(1).expect("the table");
    let table = table.split("];").next().expect("its end");
    let known = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next());
    let own = source.split("const OWN").nth(1).expect("the list of ours");
    let own = own.split("];").next().expect("its end");
    let own: Vec<&str> = own.split('"').skip(1).step_by(2).collect();
    assert!(own.len() > 5, "{own:?}");
    for name in known.chain(own) {
        assert!(names.contains(name), "{name} is not in mount.mendfs(8)");
    }
}

/// Commands in the README that a reader types, without their arguments.
#[test]
fn the_readme_names_scripts_and_commands_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    for word in readme.split(|c: char| c.is_whitespace() || "`()[],".contains(c)) {
        if word.starts_with("scripts/") || word.starts_with("man/") {
            assert!(root.join(word).exists(), "{word} is not there");
        }
    }
    let help = help("mendfs", &[]);
    for line in readme.lines().map(str::trim_start) {
        let line = line.trim_start_matches("# ");
        if let Some(rest) = line.strip_prefix("mendfs ") {
            let command = rest.split_whitespace().next().expect("a command");
            assert!(help.contains(&format!("  {command} ")), "mendfs {command}");
        }
    }
}

#[test]
fn the_files_of_a_mirror_are_those_of_the_manual() {
    let mut pool = Pool::create(2);
    pool.mount();
    fs::write(pool.mnt().join("file"), "text").expect("write");
    pool.umount();
    let page = page("mendfs.7");
    for entry in fs::read_dir(pool.mirror(0)).expect("the mirror") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("text");
        assert!(page.contains(&name), "{name} is not in mendfs(7)");
    }
}

#[test]
fn the_tables_of_the_format_have_no_gaps_and_a_superblock_is_as_they_say() {
    let page = page("mendfs.5");
    let mut tables: Vec<Vec<(usize, usize)>> = Vec::new();
    for line in page.lines() {
        let mut columns = line.strip_prefix(".It ").unwrap_or("").split(" Ta ");
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<usize>().ok());
        if let (Some(offset), Some(size)) = (number(columns.next()), number(columns.next())) {
            if offset == 0 {
                tables.push(Vec::new());
            }
            tables.last_mut().expect("a table").push((offset, size));
        }
    }
    let ends: Vec<usize> = tables
        .iter()
        .map(|table| {
            table.iter().fold(0, |at, &(offset, size)| {
                assert_eq!(at, offset);
                offset + size
            })
        })
        .collect();
    assert_eq!(ends, [4096, 40, 72, 4096]);
    let pool = Pool::create_with(2, &["--label", "home"]);
    let slots = fs::read(pool.mirror(0).join("mendfs.super")).expect("superblock");
    let slot = slots
        .chunks(4096)
        .find(|slot| slot.starts_with(b"MENDFS\r\n"));
    let slot = slot.expect("a slot");
    assert_eq!(slot[8..12], 1_u32.to_le_bytes());
    assert_eq!(slot[16..20], 4096_u32.to_le_bytes());
    assert_eq!(
        (&slot[184..186], &slot[186..190]),
        (&[4, 0][..], &b"home"[..])
    );
    assert_eq!((slot[250], &slot[251..267]), (2, &slot[64..80]));
}

#[test]
fn version_is_that_of_the_package() {
    let output = mendfs(["--version"]);
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(said.trim(), format!("mendfs {}", env!("CARGO_PKG_VERSION")));
}
