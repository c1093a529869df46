//! Mounts in all their kinds: options, remounts, bind mounts, file handles, overlays.

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::scenario::scenario;
use common::{Pool, drop_caches};
use nix::errno::Errno;

#[test]
fn generic_options_have_their_effect() {
    scenario(
        r#"
        mount -t mendfs -o nosuid,nodev,noexec,noatime,dirsync,sync "$a:$b" "$mnt"
        for option in nosuid nodev noexec noatime dirsync sync; do
            line | grep -qE "[ ,]$option[ ,]" || fail "no $option: $(line)"
        done
        printf '#!/bin/sh\necho ran\n' >"$mnt/script"
        chmod 755 "$mnt/script"
        ! "$mnt/script" 2>/dev/null || fail "executed on a noexec mount"
        mknod "$mnt/null" c 1 3
        ! cat "$mnt/null" 2>/dev/null || fail "a device was opened on a nodev mount"
        umount "$mnt"
        gone

        # A root's mount has none of them, and lets everybody in, as permissions allow.
        mount -t mendfs "$a:$b" "$mnt"
        line | grep -q allow_other || fail "$(line)"
        test "$("$mnt/script")" = ran
        test -z "$(cat "$mnt/null")"
        cp "$(command -v id)" "$mnt/id"
        chown 65534 "$mnt/id"
        chmod 4755 "$mnt/id"
        test "$("$mnt/id" -u)" = 65534 || fail "set-user-ID has no effect"
        echo secret >"$mnt/secret"
        chmod 600 "$mnt/secret"
        echo open >"$mnt/open"
        test "$(setpriv --reuid 65534 --regid 65534 --clear-groups cat "$mnt/open")" = open
        ! setpriv --reuid 65534 --regid 65534 --clear-groups cat "$mnt/secret" 2>/dev/null ||
            fail "others read what is not theirs"
        (umask 027; touch "$mnt/masked"; mkdir "$mnt/masked.d")
        test "$(stat -c %a "$mnt/masked" "$mnt/masked.d" | xargs)" = "640 750"
        umount "$mnt"
        gone

        mount -t mendfs -o nosuid "$a:$b" "$mnt"
        test "$("$mnt/id" -u)" = 0 || fail "set-user-ID on a nosuid mount"
        umount "$mnt"
        gone

        # Owners and permissions are those of the files: options that would invent them do not
        # exist here.
        for option in uid=1 gid=1 umask=077 fmask=077 default_acl; do
            ! mount -t mendfs -o "$option" "$a:$b" "$mnt" 2>"$1/error" || fail "$option taken"
            grep -qF "${option%%=*}" "$1/error" || fail "$(cat "$1/error")"
        done
        "#,
    );
}

#[test]
fn a_remount_changes_what_it_names_and_refuses_what_is_busy() {
    scenario(
        r#"
        mount -t mendfs -o noatime "$a:$b" "$mnt"
        before=$(line)
        mount -o remount "$mnt"
        test "$(line)" = "$before" || fail "remount changed $before to $(line)"

        exec 9>"$mnt/log"
        echo one >&9
        status=0
        mount -o remount,ro "$mnt" 2>"$1/error" || status=$?
        test "$status" = 32 || fail "read-only under a writer: $status"
        grep -q busy "$1/error" || fail "$(cat "$1/error")"
        echo two >&9
        exec 9>&-
        mount -o remount,ro "$mnt"
        case $(line) in *" ro,"*) ;; *) fail "$(line)" ;; esac
        ! mkdir "$mnt/dir" 2>"$1/error" || fail "mkdir"
        grep -q "Read-only file system" "$1/error" || fail "$(cat "$1/error")"
        test "$(cat "$mnt/log" | xargs)" = "one two"
        # What was written is there, whatever comes now.
        sync -f "$mnt"
        mount -o remount,rw,noexec "$mnt"
        line | grep -q noexec || fail "$(line)"
        mkdir "$mnt/dir"
        mount -o remount,exec "$mnt"
        ! line | grep -q noexec || fail "$(line)"
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn bind_mounts_and_namespaces_show_the_same_files() {
    scenario(
        r#"
        mount -t mendfs "$a:$b" "$mnt"
        mkdir -p "$mnt/dir/sub" "$1/bound" "$1/other"
        echo one >"$mnt/dir/file"
        mount --bind "$mnt/dir" "$1/bound"
        test "$(cat "$1/bound/file")" = one
        echo two >"$1/bound/sub/new"
        test "$(cat "$mnt/dir/sub/new")" = two
        test "$(stat -c %d:%i "$1/bound/file")" = "$(stat -c %d:%i "$mnt/dir/file")"
        # Two mounts of one filesystem are two to link(2) and rename(2).
        ! ln "$1/bound/file" "$mnt/linked" 2>"$1/error" || fail "linked across mounts"
        grep -qi "cross-device" "$1/error" || fail "$(cat "$1/error")"
        mount -o remount,bind,ro "$1/bound"
        ! touch "$1/bound/file" 2>/dev/null || fail "written through a read-only bind mount"
        touch "$mnt/dir/file"
        unshare -m bash -c '
            set -eu
            echo three >"$1/mnt/dir/inside"
            umount "$1/bound"
            mount -t tmpfs none "$1/mnt/dir/sub"
            test ! -e "$1/mnt/dir/sub/new"
        ' bash "$1"
        test "$(cat "$mnt/dir/inside" "$mnt/dir/sub/new" | xargs)" = "three two"
        # The server lives until the last of them goes.
        umount "$mnt"
        test "$(cat "$1/bound/file")" = one
        umount "$1/bound"
        gone
        mount -t mendfs "$a:$b" "$mnt"
        test "$(cat "$mnt/dir/inside")" = three
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn with_dirsync_names_are_durable_at_once() {
    scenario(
        r#"
        mount -t mendfs -o dirsync,commit=none "$a:$b" "$mnt"
        mkdir "$mnt/dir"
        touch "$mnt/dir/old" "$mnt/dir/gone"
        ln "$mnt/dir/old" "$mnt/linked"
        ln -s target "$mnt/symbolic"
        mv "$mnt/dir/old" "$mnt/dir/new"
        rm "$mnt/dir/gone"
        mkdir "$mnt/empty"
        rmdir "$mnt/empty"
        crash
        mount -t mendfs "$a:$b" "$mnt"
        test "$(cd "$mnt" && find . | sort | xargs)" = ". ./dir ./dir/new ./linked ./symbolic" ||
            fail "$(find "$mnt")"
        test "$(stat -c %h "$mnt/linked")" = 2
        umount "$mnt"
        gone
        mendfs check "$a:$b"
        "#,
    );
}

#[test]
fn with_sync_everything_is_durable_at_once() {
    scenario(
        r#"
        mount -t mendfs -o sync,commit=none "$a:$b" "$mnt"
        echo content >"$mnt/file"
        crash
        mount -t mendfs -o sync,commit=none "$a:$b" "$mnt"
        test "$(cat "$mnt/file")" = content || fail "the content is lost"
        mkdir "$mnt/dir"
        crash
        mount -t mendfs -o sync,commit=none "$a:$b" "$mnt"
        test -d "$mnt/dir" || fail "the directory is lost"
        chmod 640 "$mnt/file"
        crash
        mount -t mendfs -o sync,commit=none "$a:$b" "$mnt"
        test "$(stat -c %a "$mnt/file")" = 640 || fail "the mode is lost"
        truncate -s 3 "$mnt/file"
        crash
        mount -t mendfs "$a:$b" "$mnt"
        test "$(cat "$mnt/file")" = con || fail "the truncation is lost"
        umount "$mnt"
        gone
        mendfs check "$a:$b"
        "#,
    );
}

#[test]
fn it_is_a_lower_layer_of_overlayfs() {
    scenario(
        r#"
        mount -t mendfs "$a:$b" "$mnt"
        mkdir -p "$mnt/lower/sub" "$1/disk" "$1/merged"
        mount -t tmpfs none "$1/disk"
        mkdir "$1/disk/upper" "$1/disk/work"
        echo lower >"$mnt/lower/file"
        echo below >"$mnt/lower/sub/below"
        mount -t overlay overlay -o "lowerdir=$mnt/lower,upperdir=$1/disk/upper" \
            -o "workdir=$1/disk/work,index=on,nfs_export=on" "$1/merged"
        grep -F "$1/merged" /proc/mounts | grep -q nfs_export=on || fail "handles are not taken"
        echo more >>"$1/merged/file"
        rm "$1/merged/sub/below"
        test "$(cat "$1/merged/file" | xargs)" = "lower more"
        test "$(cat "$mnt/lower/file")" = lower
        test ! -e "$1/merged/sub/below" -a -e "$mnt/lower/sub/below"
        umount "$1/merged"
        umount "$1/disk"
        umount "$mnt"
        gone
        "#,
    );
}

#[test]
fn it_is_the_upper_layer_of_overlayfs() {
    scenario(
        r#"
        overlay() {
            mount -t mendfs "$a:$b" "$mnt"
            mkdir -p "$mnt/upper" "$mnt/work"
            mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$mnt/upper" \
                -o "workdir=$mnt/work" "$1/merged"
        }
        apart() {
            umount "$1/merged"
            umount "$mnt"
            gone
        }
        mkdir -p "$1/lower/sub/deep" "$1/lower/opaque" "$1/merged"
        echo lower >"$1/lower/file"
        echo away >"$1/lower/away"
        echo old >"$1/lower/opaque/old"
        overlay "$1"
        echo more >>"$1/merged/file"
        setfattr -n user.note -v kept "$1/merged/file"
        rm "$1/merged/away"
        rm -r "$1/merged/opaque"
        mkdir "$1/merged/opaque"
        mkdir "$1/merged/made"
        mv "$1/merged/made" "$1/merged/sub/moved"
        mv "$1/merged/file" "$1/merged/renamed"
        ln "$1/merged/renamed" "$1/merged/linked"
        # An upper layer that cannot do this is mounted read-only by overlayfs.
        case $(grep -F "$1/merged" /proc/mounts) in *" rw,"*) ;; *) fail "not writable" ;; esac
        apart "$1"
        overlay "$1"
        test "$(cd "$1/merged" && find . | sort | xargs)" = \
            ". ./linked ./opaque ./renamed ./sub ./sub/deep ./sub/moved" ||
            fail "$(find "$1/merged")"
        test "$(cat "$1/merged/linked" | xargs)" = "lower more"
        test "$(getfattr --only-values -n user.note "$1/merged/renamed")" = kept
        # Whiteouts are character devices 0:0, and mendfs has made them.
        test "$(stat -c %F:%t:%T "$mnt/upper/away")" = "character special file:0:0"
        test "$(getfattr --only-values -n trusted.overlay.opaque "$mnt/upper/opaque")" = y
        apart "$1"
        mendfs check "$a:$b"
        "#,
    );
}

/// A file handle as the kernel hands it out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Handle {
    len: u32,
    kind: i32,
    bytes: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let mut handle = Handle {
        len: 128,
        kind: 0,
        bytes: [0; 128],
    };
    let mut mount = 0;
    // SAFETY: the path ends in NUL, and the handle has room for the length that it names.
    let result = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            path.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    };
    Errno::result(result).expect("name_to_handle_at");
    handle
}

/// Opens what a handle stands for, on the filesystem mounted there.
fn open_handle(mnt: &Path, mut handle: Handle, flags: i32) -> nix::Result<File> {
    let mount = File::open(mnt).expect("the mount");
    // SAFETY: the handle is as long as it says.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    // SAFETY: a new descriptor that is nobody else's.
    Errno::result(fd).map(|fd| unsafe { File::from_raw_fd(fd) })
}

fn read_handle(mnt: &Path, handle: Handle) -> nix::Result<String> {
    let mut text = String::new();
    let mut file = open_handle(mnt, handle, libc::O_RDONLY)?;
    file.read_to_string(&mut text).expect("read");
    Ok(text)
}

#[test]
fn a_file_handle_finds_its_file_as_long_as_there_is_one() {
    let mut pool = Pool::create(2);
    pool.mount();
    let (mnt, dir) = (pool.mnt().to_owned(), pool.mnt().join("dir/sub"));
    fs::create_dir_all(&dir).expect("mkdir");
    fs::write(dir.join("file"), "text").expect("write");
    let (of_dir, of_file) = (handle_of(&dir), handle_of(&dir.join("file")));
    assert_eq!(read_handle(&mnt, of_file).expect("known"), "text");
    drop_caches();
    assert_eq!(read_handle(&mnt, of_file).expect("not known"), "text");
    fs::rename(&dir, mnt.join("moved")).expect("rename");
    drop_caches();
    assert_eq!(read_handle(&mnt, of_file).expect("moved"), "text");
    let found = open_handle(&mnt, of_dir, libc::O_RDONLY).expect("moved");
    // The kernel has asked for "..", up to the root.
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    assert_eq!(fs::read_link(link).expect("readlink"), mnt.join("moved"));
    drop(found);
    // Numbers and generations are the same for ever.
    pool.remount();
    assert_eq!(read_handle(&mnt, of_file).expect("another mount"), "text");
    let mut wrong = of_file;
    // Behind the number, of 8 bytes, is the generation.
    wrong.bytes[8] ^= 1;
    let stale = |handle| read_handle(&mnt, handle).expect_err("stale");
    assert_eq!(stale(wrong), Errno::ESTALE);
    drop_caches();
    assert_eq!(stale(wrong), Errno::ESTALE);

    let open = open_handle(&mnt, of_file, libc::O_RDWR).expect("open");
    fs::remove_dir_all(mnt.join("moved")).expect("rm -r");
    assert_eq!(open.metadata().expect("stat").nlink(), 0);
    drop(open);
    let gone = open_handle(&mnt, of_dir, libc::O_RDONLY).map(|_| ());
    assert_eq!(gone, Err(Errno::ESTALE));
    drop_caches();
    assert_eq!(stale(of_file), Errno::ESTALE);
    let gone = open_handle(&mnt, of_dir, libc::O_RDONLY).map(|_| ());
    assert_eq!(gone, Err(Errno::ESTALE));
}

#[test]
fn a_handle_from_before_a_crash_never_finds_another_file() {
    let mut pool = Pool::create(2);
    pool.mount_with("commit=none");
    let mnt = pool.mnt().to_owned();
    fs::write(mnt.join("lost"), "lost").expect("write");
    let lost = handle_of(&mnt.join("lost"));
    pool.kill9();
    pool.mount();
    // Durable or not, that is the question: with no sync it is gone, unless a checkpoint came.
    let survived = mnt.join("lost").exists();
    for number in 0..100 {
        fs::write(mnt.join(number.to_string()), "another").expect("write");
    }
    match read_handle(&mnt, lost) {
        Ok(text) => assert!(survived && text != "another", "{text}"),
        Err(errno) => assert_eq!((errno, survived), (Errno::ESTALE, false)),
    }
}
