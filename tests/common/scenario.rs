//! Scenarios as shell scripts, with the helpers of mount(8) installed by scripts/install, in a
//! mount namespace of their own (scripts/with-helpers): nothing is installed on this machine.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{MENDFS, scratch, text};

/// What the scenarios share: $1 is an empty directory.
const PRELUDE: &str = r#"
set -eu
a=$1/a b=$1/b mnt=$1/mnt
mkdir "$a" "$b" "$mnt"
fail() { echo "FAIL: $*"; exit 1; }
line() { grep -F " $mnt " /proc/mounts || fail "not in /proc/mounts"; }
daemons() { grep -lszFx -f <(printf '%s\n' "$mnt") /proc/[0-9]*/cmdline || true; }
gone() {
    for _ in $(seq 600); do
        [ -z "$(daemons)" ] && return
        sleep 0.1
    done
    fail "the process is still there after umount: $(daemons)"
}
# The end of the process as a crash would be, and the dead mount away.
crash() {
    for process in $(daemons); do
        kill -9 "$(echo "$process" | cut -d/ -f3)"
    done
    umount -l "$mnt"
    gone
}
mkfs -t mendfs "$a" "$b"
"#;

/// Runs a script after the prelude and expects that it ends well.
pub(crate) fn scenario(script: &str) {
    let dir = scratch();
    let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-helpers");
    let output = Command::new(helpers)
        .env("BINARY", MENDFS)
        .args(["bash", "-c", &format!("{PRELUDE}\n{script}"), "bash"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("with-helpers runs");
    assert!(output.status.success(), "{}", text(&output));
}
