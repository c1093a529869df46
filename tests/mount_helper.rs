//! The commands as mount(8), mkfs(8) and fsck(8) call them, installed by scripts/install, in a
//! mount namespace of its own (scripts/with-helpers): nothing is installed on this machine.

mod common;

use common::scenario::scenario;

#[test]
fn mount_minus_t_mendfs_returns_when_the_mount_is_live() {
    scenario(
        r#"
        mount -t mendfs "$a:$b" "$mnt"
        echo hello >"$mnt/file"
        case $(line) in
            "$a:$b $mnt fuse.mendfs rw,"*) ;;
            *) fail "$(line)" ;;
        esac
        mount | grep -qF "$a:$b on $mnt type fuse.mendfs" || fail "$(mount | tail -n 1)"
        test -n "$(daemons)" || fail "nobody serves the mount"
        umount "$mnt"
        gone
        mount -t fuse.mendfs "$a:$b" "$mnt"
        test "$(cat "$mnt/file")" = hello
        umount "$mnt"
        gone
        fsck -t mendfs "$a:$b" || fsck.mendfs "$a:$b"
        "#,
    );
}

#[test]
fn umount_leaves_both_mirrors_complete_at_once() {
    // What a clean unmount acknowledged is durable: a mirror taken away right after it is whole.
    scenario(
        r#"
        mount -t mendfs "$a:$b" "$mnt"
        head -c 20000000 /dev/urandom >"$mnt/data"
        sum=$(sha256sum <"$mnt/data")
        umount "$mnt"
        gone
        mv "$a" "$1/away"
        mount -t mendfs "$a:$b" "$mnt"
        test "$sum" = "$(sha256sum <"$mnt/data")"
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn an_fstab_line_mounts() {
    scenario(
        r#"
        printf '%s %s mendfs rw,noatime,nofail,x-systemd.automount,_netdev 0 0\n' \
            "$a:$b" "$mnt" >"$1/fstab"
        mount -T "$1/fstab" "$mnt"
        case $(line) in
            *noatime*) ;;
            *) fail "noatime is lost: $(line)" ;;
        esac
        echo hello >"$mnt/file"
        umount "$mnt"
        gone
        printf '%s %s fuse.mendfs defaults,ro 0 0\n' "$a:$b" "$mnt" >"$1/fstab"
        mount -T "$1/fstab" "$mnt"
        test "$(cat "$mnt/file")" = hello
        case $(line) in
            *" fuse.mendfs ro,"*) ;;
            *) fail "not read-only: $(line)" ;;
        esac
        ! touch "$mnt/other" 2>/dev/null || fail "a read-only mount was written to"
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn a_mount_can_be_made_read_only_and_back() {
    scenario(
        r#"
        mount -t mendfs "$a:$b" "$mnt"
        echo one >"$mnt/file"
        mount -o remount,ro "$mnt"
        ! touch "$mnt/file" 2>/dev/null || fail "written to after remount,ro"
        mount -o remount,rw "$mnt"
        echo two >>"$mnt/file"
        test "$(wc -l <"$mnt/file")" = 2
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn errors_reach_the_terminal_with_the_codes_of_mount() {
    scenario(
        r#"
        status=0
        mount -t mendfs "$a:$b" "$mnt" -o frobnicate 2>"$1/error" || status=$?
        grep -q frobnicate "$1/error" || fail "$(cat "$1/error")"
        test "$status" = 1 || fail "status $status for an unknown option"
        status=0
        mount -t mendfs "$1/none:$1/neither" "$mnt" 2>"$1/error" || status=$?
        grep -qF "$1/none" "$1/error" || fail "$(cat "$1/error")"
        test "$status" = 32 || fail "status $status for a pool that is not there"
        test -z "$(daemons)" || fail "a process stayed behind"
        # -f of mount(8) is a dry run.
        mount -f -t mendfs "$a:$b" "$mnt"
        ! mountpoint -q "$mnt" || fail "mount -f mounted"
        "#,
    );
}

#[test]
fn a_crash_shows_no_empty_directory() {
    scenario(
        r#"
        mount -t mendfs "$a:$b" "$mnt"
        echo hello >"$mnt/file"
        sync "$mnt/file"
        for process in $(daemons); do
            kill -9 "$(echo "$process" | cut -d/ -f3)"
        done
        ! ls "$mnt/never-asked-for" 2>"$1/error" || fail "a dead mount answers"
        ! ls "$mnt" >"$1/list" 2>&1 || test -s "$1/list" || fail "an empty directory"
        grep -qE "not connected|connection abort" "$1/error" || fail "$(cat "$1/error")"
        umount "$mnt"
        mount -t mendfs "$a:$b" "$mnt"
        test "$(cat "$mnt/file")" = hello
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn directories_with_spaces_and_odd_names_work() {
    scenario(
        r#"
        mkdir "$1/disk one" "$1/disk-two,x" "$1/mount point"
        mkfs.mendfs "$1/disk one" "$1/disk-two,x"
        mount -t mendfs "$1/disk one:$1/disk-two,x" "$1/mount point"
        echo hello >"$1/mount point/file"
        mendfs status "$1/mount point"
        umount "$1/mount point"
        mnt="$1/mount point"
        gone
        mount -t mendfs "$1/disk one:$1/disk-two,x" "$mnt"
        test "$(cat "$mnt/file")" = hello
        umount "$mnt"
        gone
        "#,
    );
}
