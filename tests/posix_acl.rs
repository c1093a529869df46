//! POSIX ACLs, extended attributes and permissions: what ext4 does, mendfs does.
//!
//! Each scene is a script that prints what it sees. It runs on ext4 and on a mounted pool, as root
//! and as users that it becomes, and both must print the same. Lines that must be among it keep a
//! scene from being alike in failing. What ext4 has no room for is tested by itself.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;

use common::{Mounted, Pool, media, text, xattr};

/// Users have a group of the same number. `as USER GROUPS COMMAND` has supplementary groups too,
/// `-` for none.
const HEAD: &str = r#"
as() {
    local who=$1 groups=(--groups "$2")
    [ "$2" = - ] && groups=(--clear-groups)
    shift 2
    setpriv --reuid "$who" --regid "$who" "${groups[@]}" "$@" 2>&1
}
m() { stat -c '%n %A %a %u:%g' "$@"; }
umask 022
"#;

fn run_in(dir: &Path, scene: &str) -> String {
    fs::create_dir(dir).expect("mkdir");
    fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
    let script = format!("{HEAD}{scene}");
    let mut command = Command::new("bash");
    command.env("LC_ALL", "C").env_remove("POSIXLY_CORRECT");
    let output = command.arg("-c").arg(script).current_dir(dir).output();
    text(&output.expect("bash runs"))
}

fn mounted() -> Pool {
    let mut pool = Pool::create(2);
    pool.mount();
    pool
}

/// Runs the scene on ext4 and on mendfs, before and after a remount: `again` looks at what it left.
fn alike(scene: &str, again: &str, expected: &[&str]) {
    let mut pool = mounted();
    let ext4 = pool.scratch().join("ext4");
    fs::create_dir(&ext4).expect("mkdir");
    media::ext4_of_4k(&ext4, 256 << 20);
    pool.own_disks(vec![Mounted(ext4.clone())]);
    let want = run_in(&ext4.join("scene"), scene);
    let got = run_in(&pool.mnt().join("scene"), scene);
    compare(&want, &got);
    for line in expected {
        assert!(got.lines().any(|got| got == *line), "no {line:?} in\n{got}");
    }
    pool.remount();
    let look = |dir: &Path| {
        let script = format!("{HEAD}cd scene\n{again}");
        let mut command = Command::new("bash");
        let output = command.arg("-c").arg(script).current_dir(dir).output();
        text(&output.expect("bash runs"))
    };
    let (want, got) = (look(&ext4), look(pool.mnt()));
    assert!(got.lines().count() > 1, "{got}");
    compare(&want, &got);
    pool.umount();
    pool.check_clean();
}

fn compare(want: &str, got: &str) {
    for (number, (want, got)) in want.lines().zip(got.lines()).enumerate() {
        assert_eq!(want, got, "line {number}: ext4 and mendfs");
    }
    assert_eq!(want.lines().count(), got.lines().count(), "{want}\n{got}");
}

#[test]
fn lists_are_set_shown_kept_in_step_with_the_mode_and_removed() {
    alike(
        r#"
echo hi >f; chmod 640 f
setfacl -m u:1001:r,g:2002:rw f; getfacl -n f; m f
chmod 600 f; getfacl -n f; chmod 664 f; getfacl -n f; m f
setfacl -b f; getfacl -n f; m f; getfattr -m - f
setfacl -m u:1001:rw f; setfacl -x u:1001 f; getfacl -n f; m f
setfacl -x m f; getfacl -n f; getfattr -m - f
setfacl -m u:1001:rw f; setfattr -x system.posix_acl_access f; getfacl -n f
setfattr -x system.posix_acl_access f; echo "removed again: $?"
# What cannot have one.
ln -s f l; mkfifo p; mknod c c 1 3; mkdir d
default=0x0200000001000700ffffffff04000700ffffffff20000700ffffffff
setfattr -n system.posix_acl_default -v $default f 2>&1
for v in 0x 0x02000000 0x020000 0x01000000 0x020000000100070000000000 0x6e6f6e73656e7365 \
    0x0200000001000700ffffffff0200070001000000040007 \
    0x0200000001000700ffffffff0200070001000000ffff0700ffffffff20000700ffffffff \
    0x0200000001000700ffffffff020007000100000004000700ffffffff20000700ffffffff \
    0x0200000001000700ffffffff04000700ffffffff10000700ffffffff10000700ffffffff20000700ffffffff \
    0x0200000001000800ffffffff04000700ffffffff20000700ffffffff \
    0x0200000020000700ffffffff04000700ffffffff01000700ffffffff; do
    for n in access default; do
        setfattr -n system.posix_acl_$n -v $v d 2>&1
        echo "$v $n $?"
    done
done
getfacl -n d; m d
setfacl -m u:1:rw l p c; getfacl -n f p c; m f p c
setfattr -h -n system.posix_acl_access -v 0x0200 l 2>&1
# chmod 000 and back, links, names, copies.
setfacl -b f; setfacl -m u:1000:rw,g:3000:rw f; chmod 000 f; getfacl -n f; chmod 660 f; getfacl -n f
ln f f2; setfacl -m u:1:rwx f2; getfacl -n f; mv f f3; getfacl -n f3; find . -perm -g+x | sort
cp -p f3 f4; cp f3 f5; getfacl -n f4 f5
for n in $(seq 1 500); do echo "u:$((5000 + n)):r"; done >many
setfacl -M many f3; getfacl -n f3 | md5sum
# Owners and the superuser set lists, others do not, also those whom a list lets write.
as 1002 - setfacl -m u:1002:rw f4; chown 1002 f4; as 1002 - setfacl -m u:1003:rw f4
as 1003 - setfacl -m u:1003:rwx f4; getfacl -n f4
"#,
        "getfacl -n f3 f4 f5 p c d; m *",
        &[
            "user:1001:r--",
            "mask::rw-",
            "removed again: 0",
            "user:1003:rw-",
        ],
    );
}

#[test]
fn default_lists_are_inherited_in_place_of_the_umask() {
    alike(
        r#"
mkdir d; setfacl -d -m u:1001:rwx,g:2002:rx,m:rwx d; getfacl -n d
umask 077
touch d/f; mkdir d/s d/s/t; mkfifo d/p; ln -s f d/l; mknod d/c c 1 3; echo x >d/s/t/g
touch d/.x; ln d/f d/hard; cp d/f d/s/cp; mkdir -m 700 d/private; mkdir -p d/a/b/c
perl -e 'use Fcntl; for my $m (0, 0400, 0666, 0777, 04755, 02751, 01777) {
    sysopen(F, sprintf("d/m%04o", $m), O_CREAT | O_RDWR | O_EXCL, $m) or die; close F;
    mkdir(sprintf("d/d%04o", $m), $m) or die }'
umask 022
getfacl -nP d/* d/s/t d/s/t/g | sed 's/#effective.*//'; m d d/* d/s/t d/s/t/g
setfacl -k d; umask 027; touch d/after; mkdir d/afterd; getfacl -n d/after d/afterd
mkdir e; setfacl -d -m u::rwx,g::rx,o::- e; touch e/f; mkdir e/s; touch e/s/f
getfacl -n e e/f e/s e/s/f
setfacl -x d:g: e 2>&1; setfacl -d -m g::- e; touch e/g; m e/g
as 1001 - touch e/no; setfacl -m u:1001:rwx,d:u:1001:rwx e
as 1001 - sh -c 'echo 1 >e/yes; mkdir e/yd'
getfacl -n e/yes e/yd
# Set-group-ID and a default list go together.
mkdir g; chown 0:3000 g; chmod 2775 g; setfacl -d -m g:3000:rwx g; mkdir g/s; touch g/s/f
getfacl -n g/s g/s/f
umask 000; mkdir h; touch h/f; m h h/f
"#,
        "getfacl -nP d/* e/* g/s; m d/* e/* g/* h/*",
        &["default:user:1001:rwx", "h/f -rw-rw-rw- 666 0:0"],
    );
}

#[test]
fn lists_decide_about_access_on_every_component_of_a_path() {
    alike(
        r#"
echo data >x; chmod 600 x; as 1001 - cat x; setfacl -m u:1001:r x; as 1001 - cat x
as 1001 - sh -c 'echo 2 >>x'; as 1002 - cat x; setfacl -m g:2002:rw x
as 1002 2002 sh -c 'echo more >>x'; as 1002 7,2002,9 cat x; as 1002 7 cat x
chmod g-w x; as 1002 2002 sh -c 'echo more >>x'; as 1002 2002 cat x; chmod g-r x; as 1001 - cat x
mkdir q; chmod 700 q; echo i >q/i; as 1001 - cat q/i; setfacl -m u:1001:x q; as 1001 - cat q/i
as 1001 - ls q; setfacl -m u:1001:rx q; as 1001 - ls q; as 1001 - touch q/n
setfacl -m u:1001:rwx q; as 1001 - touch q/n; m q/n; setfacl -x u:1001 q; as 1001 - cat q/i
# The owner is the owner, whatever a list says of the name.
chown 1003 x; setfacl -m u:1003:rwx,m::rwx x; chmod u=- x; as 1003 - cat x
mkdir -p a/b/c; echo deep >a/b/c/f
setfacl -m u:1000:- a/b/c; as 1000 - cat a/b/c/f; as 1001 - cat a/b/c/f
setfacl -m g:3000:- a/b/c; as 1001 3000 cat a/b/c/f; as 1001 - cat a/b/c/f
setfacl -m g:3000:x a/b/c; as 1001 3000 cat a/b/c/f; setfacl -m m::r a/b/c; as 1001 3000 cat a/b/c/f
ln -s a/b/c/f lnk; as 1000 - cat lnk; setfacl -b a/b/c; as 1000 - cat lnk
# What is open stays open; a list that changes takes effect at once, also in other directories.
setfacl -m u:1000:- a; as 1000 - cat a/b/c/f; setfacl -m u:1000:x a; as 1000 - cat a/b/c/f
mkdir y; as 1000 - mv a/b/c/f y/; setfacl -m u:1000:rwx y a/b/c; as 1000 - mv a/b/c/f y/; ls y
as 1000 - ln y/f y/g; as 1000 - rm -f y/f; ls y
cp /bin/true bt; chmod 700 bt; as 1000 - ./bt; echo $?; setfacl -m u:1000:x bt; as 1000 - ./bt
echo $?
as 1000 - cat bt; as 1000 - test -x bt; echo $?; as 1000 - test -r bt; echo $?
"#,
        "getfacl -n x q q/i q/n a a/b a/b/c y bt; as 1000 - cat lnk; as 1001 - cat x",
        &["data", "more", "deep", "cat: q/i: Permission denied", "0"],
    );
}

#[test]
fn an_access_list_takes_set_group_id_from_who_is_not_in_the_group() {
    alike(
        r#"
for kind in f d; do
    for groups in - 9 2002 8,2002; do
        for acl in u:1001:r o::0 u::rwx,g::rwx,o::rwx; do
            rm -rf x; if [ $kind = f ]; then touch x; else mkdir x; fi
            chown 1000:2002 x; chmod 6775 x
            as 1000 $groups setfacl -m $acl x; m x
            [ $kind = d ] && { chmod 2775 x; as 1000 $groups setfacl -d -m $acl x; m x; }
        done
    done
    rm -rf x; if [ $kind = f ]; then touch x; else mkdir x; fi
    chown 1000:1000 x; chmod 2775 x; as 1000 - setfacl -m u:1:r x; m x
    chown 5:6 x; chmod 2775 x; setfacl -m u:2:r x; m x
done
"#,
        "m x; getfacl -n x",
        &[
            "x -rwsrwxr-x 4775 1000:2002",
            "x -rwsrwsr-x 6775 1000:2002",
            "x drwxrwsr-x 2775 5:6",
        ],
    );
}

#[test]
fn trees_are_listed_saved_restored_and_copied_with_their_lists() {
    let mut pool = mounted();
    let ext4 = pool.scratch().join("ext4");
    fs::create_dir(&ext4).expect("mkdir");
    media::ext4_of_4k(&ext4, 64 << 20);
    pool.own_disks(vec![Mounted(ext4.clone())]);
    let script = r#"
set -e
from=$1 to=$2
mkdir $from/t; cd $from/t
umask 022
mkdir -p a/b c; echo 1 >a/f; echo 2 >a/b/g; ln a/f c/hard; ln -s a/f sym; mkfifo fifo
mknod dev c 1 3
chmod 2775 a/b; chmod 1777 c; chown -R 1000:100 a; chmod 4750 a/f
setfacl -R -m u:1001:rwX,g:2002:rX a; setfacl -m d:u:1001:rwx,d:g::rx,d:o::- a/b
setfacl -m u:7:- fifo dev
setfattr -n user.a -v 'text of a' a/f; setfattr -n trusted.t -v 0x000102 a/b
setfattr -n user.dir -v 1 a
setfattr -h -n trusted.l -v link sym; setfattr -n security.other -v sec c
setcap cap_net_raw+ep a/b/g
see() { (cd $1 && find . -printf '%P %y %m %U:%G %n %l\n' | sort
    getfacl -nPR . | grep -v '^# file' | sort
    find . | sort | xargs getfattr -h -m - -d -e hex; getcap -r .); }
want=$(see $from/t)
echo "$want"
rsync -aHAX $from/t/ $to/rsync/; rsync -aHAX $to/rsync/ $from/back/
cp -a $from/t $to/cp
mkdir $to/tar; all=(--acls --xattrs '--xattrs-include=*')
tar -C $from/t "${all[@]}" -cf - . | tar -C $to/tar "${all[@]}" -xpf -
for copy in $to/rsync $from/back $to/cp $to/tar; do
    diff <(echo "$want") <(see $copy) || { echo "differs: $copy"; exit 1; }
done
changes=$(rsync -aHAXin $from/t/ $to/rsync/)
[ -z "$changes" ] || { echo "again: $changes"; exit 1; }
cd $to/cp; getfacl -nR . >$from/acls; setfacl -Rb .; [ "$(getfacl -ncR . | grep -c 1001)" = 0 ]
setfacl --restore=$from/acls; diff <(getfacl -nR .) $from/acls; chmod 4750 a/f
setcap cap_net_raw+ep a/b/g
echo restored
"#;
    for (from, to) in [(pool.mnt(), ext4.as_path()), (ext4.as_path(), pool.mnt())] {
        let mut command = Command::new("bash");
        command.args(["-c", script, "bash"]).arg(from).arg(to);
        let output = command.output().expect("bash runs");
        assert!(output.status.success(), "{}", text(&output));
        let shown = text(&output);
        assert!(shown.contains("restored"), "{shown}");
        for part in [
            "user:1001:rwx",
            "user.dir=0x31",
            "cap_net_raw=ep",
            "f f 4770 1000:100 2",
        ] {
            assert!(shown.contains(part), "no {part} in {shown}");
        }
        for left in ["t", "back", "acls"] {
            let done = Command::new("rm").arg("-rf").arg(from.join(left)).status();
            assert!(done.expect("rm runs").success());
        }
        for left in ["rsync", "cp", "tar"] {
            let done = Command::new("rm").arg("-rf").arg(to.join(left)).status();
            assert!(done.expect("rm runs").success());
        }
    }
    pool.umount();
    pool.check_clean();
}

#[test]
fn permission_is_asked_for_groups_umask_sticky_directories_and_each_component() {
    alike(
        r#"
# Sticky directories.
mkdir st; chmod 1777 st; as 1000 - sh -c 'echo a >st/a; mkdir st/d; chmod 777 st/d st/a'
as 1001 - rm -f st/a; as 1001 - mv st/a st/b; as 1001 - rmdir st/d; as 1001 - mv st/a st/d/x
as 1001 - sh -c 'echo z >st/z; mv st/z st/a'; as 1001 - ln st/a st/h; as 1000 - mv st/a st/c
as 1001 - sh -c 'echo more >>st/c'; ls st; chown 1001 st; as 1001 - rm -f st/c; ls st
# Supplementary groups; the first class that fits decides.
echo g >gf; chown 0:3000 gf; chmod 660 gf; as 1000 - cat gf; as 1000 3000 cat gf
as 1000 5,6,3000,7 sh -c 'echo h >>gf; cat gf'; chmod 606 gf; as 1000 3000 cat gf; as 1000 - cat gf
chown 1000:0 gf; chmod 066 gf; as 1000 0 cat gf
# Set-group-ID directories.
mkdir gd; chown 0:3000 gd; chmod 2775 gd; as 1000 - touch gd/no
as 1000 3000 sh -c 'echo >gd/f; mkdir gd/d gd/d/e; mkfifo gd/p; ln -s x gd/l'; m gd gd/* gd/d/e
as 1000 3000 sh -c 'cp /bin/true gd/prog; chmod 2755 gd/prog'; m gd/prog
as 1000 - chmod 2755 gd/prog; m gd/prog
mkdir gw; chown 0:3000 gw; chmod 2777 gw
make='use Fcntl; umask 0; for my $m (02777, 02767, 06757, 04777, 0640) {
    sysopen(F, sprintf("gw/%s%04o", $ARGV[0], $m), O_CREAT | O_RDWR | O_EXCL, $m) or print "$!\n";
    mkdir(sprintf("gw/d%s%04o", $ARGV[0], $m), $m) or print "$!\n" }'
as 1001 - perl -e "$make" stranger; as 1001 3000 perl -e "$make" member; perl -e "$make" root
m gw/*
mv gd/f gw/; touch plain; mv plain gw/; m gw/f gw/plain
# chown, chgrp, chmod, times.
as 1000 - chgrp 3000 gw/f; as 1000 3000 chgrp 3000 gd/d; as 1000 3000 chgrp 3001 gd/d
as 1000 - chown 1001 gd/d; as 1001 - chmod 777 gw/f; as 1001 - touch gw/f
as 1001 - touch -d 2001-01-01 gw/f; chmod 666 gw/f; as 1001 - touch gw/f
as 1001 - touch -d 2001-01-01 gw/f; m gw/f
# umask.
for u in 000 002 022 027 077 777 137; do (
    umask $u; echo >u$u; mkdir ud$u; mkfifo up$u; mknod uc$u c 1 3; ln -s x ul$u
    perl -e 'use Fcntl; sysopen(F, shift, O_CREAT | O_RDWR, 07777)' ux$u); done; m u*
# Components of a path.
mkdir -p a/b/c; echo deep >a/b/c/f
for d in a a/b a/b/c; do
    for p in 700 711 744 755 750 701; do
        chmod $p $d; echo "$d $p"
        as 1000 - cat a/b/c/f; as 1000 - stat -c %s a/b/c/f; as 1000 - ls a/b/c
        as 1000 - ls a/b/c/../c
        as 1000 - sh -c 'echo >a/b/c/new'; as 1000 - mkdir a/b/c/../x; as 1000 - rm -f a/b/c/f
        as 1000 - mv a/b/c/f a/b/c/f2; as 1000 - ln -s x a/b/c/s; as 1000 - mknod a/b/c/p p
        as 1000 - sh -c 'cd a/b/c && echo there'
    done
    chmod 755 $d
done
chown 1000 a/b; chmod 055 a/b; as 1000 - cat a/b/c/f; as 1001 - cat a/b/c/f; cat a/b/c/f
# What root may and others may not.
echo 'echo run' >ex; chmod 744 ex; as 1000 - ./ex; chmod 755 ex; as 1000 - ./ex; chmod 711 ex
as 1000 - ./ex
chmod 444 ex; as 1000 - truncate -s 0 ex; as 1000 - sh -c 'echo >>ex'; as 1000 - chown 1000 ex
as 1000 - setfattr -n user.a -v 1 ex; as 1000 - setfacl -m u:1000:rw ex; as 1000 - mknod a/dev c 1 3
"#,
        "m * gd/* gw/*",
        &[
            "there",
            "deep",
            "run",
            "gd/d drwxr-sr-x 2755 1000:3000",
            "gw/stranger2777 -rwxrwxrwx 777 1001:3000",
            "gw/member2777 -rwxrwsrwx 2777 1001:3000",
            "u777 ---------- 0 0:0",
        ],
    );
}

#[test]
fn set_user_id_and_set_group_id_go_as_on_ext4() {
    alike(
        r#"
chmod 777 .
ns() { setpriv --reuid 1000 --regid 1000 --clear-groups unshare -U --map-root-user "$@" 2>&1; }
echo "root of a namespace of its own: $(ns id -u)"
head -c 8192 /dev/zero >src
while read -r op; do
    for mode in 4777 2777 6767 2767; do
        for own in 0:0 1000:2002; do
            for who in env "as 1000 2002" "as 1001 9" ns; do
                rm -f f; head -c 9000 /dev/zero >f; chown $own f; chmod $mode f
                said=$($who sh -c "$op" 2>&1 | tail -n 1)
                echo "$op, $mode $own, $who: $said $(stat -c '%a %u:%g %s' f)"
            done
        done
    done
done <<'OPERATIONS'
echo x >>f
echo x >f
truncate -s 1 f
truncate -s 10000 f
xfs_io -c "falloc 0 20000" f
xfs_io -c "fpunch 0 4096" f
xfs_io -c "copy_range src" f
xfs_io -d -c "pwrite -q 0 4096" f
xfs_io -c "mmap -rw 0 4096" -c "mwrite 0 10" f
xfs_io -c "chmod 6777" -c "pwrite -q 0 10" f
chown 1000 f
chgrp 2002 f
chgrp 1000 f
chown : f
chmod g-s f
touch f
setfattr -n user.a -v b f
ln f g; rm -f g
OPERATIONS
"#,
        "m f src",
        &[
            "root of a namespace of its own: 0",
            "echo x >>f, 4777 0:0, as 1001 9:  777 0:0 9002",
            "echo x >>f, 6767 1000:2002, as 1000 2002:  2767 1000:2002 9002",
            "truncate -s 1 f, 2767 1000:2002, as 1001 9:  767 1000:2002 1",
            "truncate -s 1 f, 4777 0:0, ns:  777 0:0 1",
            "chown 1000 f, 4777 0:0, env:  777 1000:0 9000",
        ],
    );
}

#[test]
fn a_file_capability_goes_with_a_change_of_content_or_owner() {
    alike(
        r#"
chmod 777 .
caps() { getcap "$1"; getfattr -m security.capability -e hex -d "$1" | tail -n +2; }
head -c 8192 /dev/zero >src
while read -r op; do
    for who in env "as 1000 -"; do
        rm -f cap; head -c 20000 /dev/zero >cap; chown 1000:1000 cap; setcap cap_net_raw+ep cap
        $who sh -c "$op" 2>&1; echo "$op: $who: $(caps cap)"
    done
done <<'OPERATIONS'
echo x >>cap
echo x >cap
truncate -s 5 cap
truncate -s 50000 cap
xfs_io -c "falloc 0 90000" cap
xfs_io -c "fpunch 0 4096" cap
xfs_io -c "copy_range src" cap
xfs_io -d -c "pwrite -q 0 4096" cap
xfs_io -c "pwrite -q 0 100" cap
chown 1000 cap
chown : cap
chmod 755 cap
touch cap
setfacl -m u:1:r cap
mv cap c2; mv c2 cap
ln cap c3; rm -f c3
cp src cap
setcap -r cap
OPERATIONS
setcap cap_net_raw,cap_chown+ep cap; setcap cap_fowner+i cap
"#,
        "getcap cap",
        &[
            "touch cap: as 1000 -: cap cap_net_raw=ep",
            "echo x >>cap: env: ",
        ],
    );
}

#[test]
fn attributes_of_all_kinds_on_files_of_all_kinds() {
    alike(
        r#"
echo f >f; mkdir d; ln -s f l; ln -s nowhere dangling; mkfifo p; mknod c c 1 3; mknod b b 7 300
perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "s", Listen => 1)'
long=$(printf '%0250d' 0) longer=$(printf '%0251d' 0)
for x in f d p c b s l; do
    for n in user.a trusted.a security.a system.a nothing user. trusted. security. user . \
        user.$long user.$longer; do
        for v in value 0x "0x$(printf '%064d' 0)"; do
            setfattr -h -n "$n" -v "$v" $x 2>&1; getfattr -h -e hex -n "$n" $x 2>&1
        done
        setfattr -h -x "$n" $x 2>&1; setfattr -h -x "$n" $x 2>&1
    done
    setfattr -h -n security.selinux -v system_u:object_r:etc_t:s0 $x 2>&1
    setfattr -h -n trusted.kept -v 0x00ff00 $x 2>&1
    getfattr -h -m - -e hex -d $x
done
setfattr -n user.a -v 1 dangling; getfattr -d dangling; setfattr -n user.a -v through l
getfattr -d f
# As somebody.
echo >own; chown 1000 own; chmod 600 own; echo >other; mkdir sticky od hidden; chmod 1777 sticky
chown 1000 od
echo >hidden/f; chmod 700 hidden
for x in own other sticky od hidden/f; do
    for n in user.u trusted.secret security.sel; do setfattr -n $n -v s $x; done
done
for x in own other sticky od hidden/f; do
    for n in user.u user.new trusted.secret trusted.new security.sel security.new \
        security.capability; do
        as 1000 - getfattr -e hex -n $n $x; as 1000 - setfattr -n $n -v 1 $x
        as 1000 - setfattr -x $n $x
    done
    as 1000 - getfattr -m - -d $x; getfattr -m - -d $x
done
setfattr -n user.u -v s own
as 1000 - sh -c 'chmod 400 own; setfattr -n user.q -v 1 own; setfattr -x user.u own; chmod 200 own
    getfattr -n user.u own; getfattr -m - own'
# Names are listed in no order that is promised; many of them.
for n in $(seq 1 60); do setfattr -n user.many.$n -v $n od; done
getfattr -d od | sort; as 1000 - getfattr -d od | wc -l
for n in $(seq 1 60); do setfattr -x user.many.$n od; done; getfattr -m - od
rm -f own; cp --preserve=xattr,mode,ownership f g; getfattr -m - -d g
"#,
        "getfattr -h -m - -d f d p c b s l od g | sort",
        &[
            "user.a=0x76616c7565",
            "trusted.kept=0x00ff00",
            "getfattr: hidden/f: Permission denied",
            "own: trusted.secret: No such attribute",
            "user.a=\"through\"",
        ],
    );
}

fn sys(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::last())
}

fn path_of(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_string_lossy().as_bytes()).expect("no NUL")
}

fn set(path: &Path, name: &str, value: &[u8], flags: i32) -> Result<(), Errno> {
    let (path, name) = (path_of(path), path_of(Path::new(name)));
    let data = value.as_ptr().cast();
    // SAFETY: both strings end in NUL and the value is as long as said.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, value.len(), flags) };
    sys(done as isize).map(drop)
}

/// Length of a value as answered to a buffer of that size.
fn get(path: &Path, name: &str, size: usize) -> Result<usize, Errno> {
    let (path, name) = (path_of(path), path_of(Path::new(name)));
    let mut buffer = vec![0u8; size];
    // SAFETY: both strings end in NUL and the buffer is as long as said.
    sys(unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            size,
        )
    })
}

fn list(path: &Path, size: usize) -> Result<usize, Errno> {
    let path = path_of(path);
    let mut buffer = vec![0u8; size];
    // SAFETY: the path ends in NUL and the buffer is as long as said.
    sys(unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), size) })
}

#[test]
fn values_up_to_64_kib_and_lists_have_the_kernels_limits() {
    let mut pool = mounted();
    let path = pool.mnt().join("file");
    fs::write(&path, "").expect("write");
    for name in ["user.big", "trusted.big", "security.big"] {
        for len in [65_536, 0, 1, 4096, 65_535] {
            let value = common::content::content(len as u64, len);
            set(&path, name, &value, 0).expect("set");
            assert_eq!(xattr(&path, name).expect("get"), value);
        }
        set(&path, name, &[7; 65_536], libc::XATTR_REPLACE).expect("replace");
        assert_eq!(set(&path, name, &[8; 65_537], 0), Err(Errno::E2BIG));
        let small = [0, 65_536, 70_000].map(|size| get(&path, name, size));
        assert_eq!(small, [Ok(65_536); 3]);
        assert_eq!(get(&path, name, 65_535), Err(Errno::ERANGE));
        assert_eq!(get(&path, name, 1), Err(Errno::ERANGE));
    }
    set(&path, "user.empty", b"", libc::XATTR_CREATE).expect("create");
    assert_eq!(
        [0, 1].map(|size| get(&path, "user.empty", size)),
        [Ok(0); 2]
    );
    let both = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    for (name, flags, want) in [
        ("user.empty", libc::XATTR_CREATE, Err(Errno::EEXIST)),
        ("user.empty", libc::XATTR_REPLACE, Ok(())),
        ("user.none", libc::XATTR_REPLACE, Err(Errno::ENODATA)),
        ("user.empty", both, Err(Errno::EEXIST)),
        ("user.none", both, Err(Errno::ENODATA)),
        ("user.none", 4, Err(Errno::EINVAL)),
    ] {
        assert_eq!(set(&path, name, b"v", flags), want, "{name} {flags}");
    }
    let names = "user.big trusted.big security.big user.empty ".len();
    assert_eq!(
        [0, names, 65_536].map(|size| list(&path, size)),
        [Ok(names); 3]
    );
    assert_eq!(list(&path, names - 1), Err(Errno::ERANGE));
    assert_eq!(list(&path, 1), Err(Errno::ERANGE));

    // 256 names of 256 bytes with their NUL are just 64 KiB.
    let many = pool.mnt().join("many");
    fs::write(&many, "").expect("write");
    let name = |number: u32| format!("user.{number:03}{}", "n".repeat(247));
    for number in 0..256 {
        set(&many, &name(number), b"v", 0).expect("set");
    }
    assert_eq!([0, 65_536].map(|size| list(&many, size)), [Ok(65_536); 2]);
    set(&many, "user.more", b"v", 0).expect("set");
    assert_eq!(list(&many, 65_536), Err(Errno::E2BIG));
    assert_eq!(list(&many, 0), Err(Errno::E2BIG));
    assert_eq!(get(&many, "user.more", 10), Ok(1), "they are still there");
    pool.remount();
    assert_eq!(xattr(&path, "user.big").expect("get"), [7; 65_536]);
    assert_eq!(get(&many, &name(255), 1), Ok(1));
    assert_eq!(list(&many, 65_536), Err(Errno::E2BIG));
    pool.umount();
    pool.check_clean();
}

/// A list with so many entries.
fn long_acl(entries: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    let mut push = |tag: u16, id: u32| {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&6u16.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    };
    push(1, u32::MAX);
    (0..entries - 4).for_each(|number| push(2, 2000 + number));
    [4, 16, 32].into_iter().for_each(|tag| push(tag, u32::MAX));
    bytes
}

#[test]
fn a_list_has_as_many_entries_as_the_kernel_passes_on() {
    let mut pool = mounted();
    let (path, dir) = (pool.mnt().join("file"), pool.mnt().join("dir"));
    fs::write(&path, "").expect("write");
    fs::create_dir(&dir).expect("mkdir");
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let longest = long_acl(511);
    set(&path, access, &longest, 0).expect("511 entries");
    set(&dir, default, &longest, 0).expect("511 entries");
    assert_eq!(set(&path, access, &long_acl(512), 0), Err(Errno::E2BIG));
    fs::write(dir.join("new"), "").expect("write");
    pool.remount();
    assert_eq!(xattr(&path, access).expect("get"), longest);
    assert_eq!(xattr(&dir, default).expect("get"), longest);
    assert_eq!(xattr(&dir.join("new"), access).expect("get"), longest);
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
    assert_eq!((mode(&path), mode(&dir.join("new"))), (0o666, 0o666));
}

#[test]
fn list_and_mode_come_back_together_after_a_kill() {
    let mut pool = mounted();
    let script = r#"
touch f; setfacl -m u:1001:rw,m::r f; chmod 660 f; setfacl -m u:1002:x f
mkdir d; setfacl -d -m u:1001:rwx d; mkdir d/s; touch d/f
"#;
    let before = run_in(
        &pool.mnt().join("scene"),
        &format!("{script}\ngetfacl -nR .; m . * */*"),
    );
    let root = File::open(pool.mnt()).expect("open");
    root.sync_all().expect("fsync");
    drop(root);
    pool.kill9();
    pool.mount();
    let look = format!("{HEAD}cd scene; getfacl -nR .; m . * */*");
    let mut command = Command::new("bash");
    let output = command.arg("-c").arg(look).current_dir(pool.mnt()).output();
    let after = text(&output.expect("bash runs"));
    assert!(after.contains("user:1002:--x"), "{after}");
    compare(&before, &after);
    pool.umount();
    pool.check_clean();
}

/// Requests for an attribute's value that the filesystem has answered.
fn asked(pool: &Pool, work: impl FnOnce()) -> usize {
    let trace = pool.scratch().join("trace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-xx", "-s", "70", "-e", "trace=read", "-o"])
        .arg(&trace)
        .args(["-p", &pool.pid().to_string()])
        .spawn()
        .expect("strace runs");
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{}/status", pool.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("TracerPid:"));
        line.is_some_and(|line| !line.ends_with("\t0"))
    };
    common::wait_for("strace", std::time::Duration::from_secs(20), traced);
    work();
    let id = nix::unistd::Pid::from_raw(strace.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("kill");
    strace.wait().expect("wait");
    let text = fs::read_to_string(&trace).expect("the trace");
    // FUSE_GETXATTR is 22, in the fifth byte of a request.
    let is_get = |line: &&str| line.contains("\\x16\\x00\\x00\\x00");
    text.lines().filter(is_get).count()
}

#[test]
fn that_a_file_has_no_list_is_asked_once() {
    let mut pool = mounted();
    let dir = pool.mnt().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    for number in 0..200 {
        fs::write(dir.join(number.to_string()), "text").expect("write");
    }
    pool.remount();
    let run = |user: &str, work: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        // Names of a directory below the root: see mendfs(7) for what the root costs.
        let done = command.args(["sh", "-c", work]).current_dir(&dir).status();
        assert!(done.expect("sh runs").success());
    };
    // Opens and reads, but does not ask for attributes as cat(1) does: the kernel forgets what it
    // knows of lists when it gets attributes anew, which it does after each close.
    let read = "for file in *; do read line <$file; done; true";
    let counts: Vec<usize> = [
        ("1000", "stat -c '' *"),
        ("1000", read),
        ("1000", read),
        ("1001", read),
        ("0", read),
        ("1001", "stat -c '' *"),
    ]
    .iter()
    .map(|(user, work)| asked(&pool, || run(user, work)))
    .collect();
    let few = 8;
    assert!(counts[0] <= few, "stat asks for nothing: {counts:?}");
    let once = 200..=200 + few;
    assert!(once.contains(&counts[1]), "an open once: {counts:?}");
    assert!(
        counts[2..].iter().all(|count| *count <= few),
        "and no more: {counts:?}"
    );
    // Of the root, which Linux asks about each time, nothing is asked if its group has no rights.
    fs::set_permissions(pool.mnt(), Permissions::from_mode(0o705)).expect("chmod");
    let count = asked(&pool, || run("1001", "stat -c '' ../dir/*"));
    assert!(count <= few, "paths through the root: {count}");
}

#[test]
fn without_acl_lists_stay_and_cannot_be_set() {
    let mut pool = mounted();
    let make = r#"
echo data >f; chmod 600 f; setfacl -m u:1001:r f; mkdir d; setfacl -d -m u:1001:rwx d
as 1001 - cat f
"#;
    let shown = run_in(&pool.mnt().join("scene"), make);
    assert!(shown.contains("data"), "{shown}");
    pool.umount();
    pool.mount_with("noacl");
    let look = r#"
cd scene; as 1001 - cat f; setfacl -m u:1002:r f 2>&1; umask 027; touch d/f plain; chmod 640 f
getfacl -cn f; m plain
"#;
    let run = |pool: &Pool, script: &str| {
        let script = format!("{HEAD}{script}");
        let mut command = Command::new("bash");
        let output = command
            .arg("-c")
            .arg(script)
            .current_dir(pool.mnt())
            .output();
        text(&output.expect("bash runs"))
    };
    let shown = run(&pool, look);
    assert!(shown.contains("cat: f: Permission denied"), "{shown}");
    assert!(
        shown.contains("setfacl: f: Operation not supported"),
        "{shown}"
    );
    assert!(shown.contains("user:1001:r--"), "{shown}");
    assert!(shown.contains("plain -rw-r----- 640 "), "{shown}");
    pool.umount();
    pool.mount_with("acl");
    let shown = run(
        &pool,
        "cd scene; as 1001 - cat f; setfacl -m u:1002:r f && m f",
    );
    assert!(
        shown.contains("data") && shown.contains("f -rw-r----- 640 0:0"),
        "{shown}"
    );
    assert_eq!(
        fs::metadata(pool.mnt().join("scene/d/f"))
            .expect("stat")
            .mode()
            & 0o777,
        0o664
    );
}
