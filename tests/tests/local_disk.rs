//! Programs that know nothing of us, in a mount of a node's export: they find what they would find on a local disk.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::path::{Path, PathBuf};

use tests::as_both;
use tests::machine::{Done, Machine, Text, until};
use tests::mounted::{guest, once, python, script};

as_both! {
    git_clones_commits_collects_and_works_in_a_second_tree
    sqlite_keeps_a_database_in_every_journal_mode
    programs_are_compiled_and_run
    names_may_have_any_bytes_and_paths_any_depth
    a_file_may_be_larger_than_memory_and_disk
    an_archive_comes_out_as_it_went_in
    rsync_has_nothing_left_to_do_the_second_time
    programs_run_in_a_mount_with_a_single_writer
    open_files_go_on_whatever_happens_to_their_names
    what_happens_through_the_mount_is_told_by_inotify
    df_tells_the_room_of_the_exports_disk
}

fn git_clones_commits_collects_and_works_in_a_second_tree(mut machine: Machine) {
    let files = once(&mut machine);
    use_git(&machine, &files);
}

fn use_git(machine: &Machine, files: &Path) {
    // A repository with a history, one from which another is cloned by copying and by the protocol, and a second tree.
    let text = r#"cd "$1"; export GIT_CONFIG_GLOBAL="$1/config"
        git config --file config user.name a; git config --file config user.email a@b
        git config --file config init.defaultBranch main
        git init -q first; cd first
        for turn in 1 2 3 4; do
            mkdir -p "d$turn/deep/er"
            for n in 1 2 3 4; do seq "$turn" "$((turn * n * 20))" >"d$turn/deep/er/f$n"; done
            ln -s "deep/er/f$turn" "d$turn/link"; chmod +x "d$turn/deep/er/f1"; seq "$turn" >changing
            git add -A; git commit -qm "turn $turn"
        done
        git tag -a -m tag v1
        cd ..; git clone -q --no-local first second; git clone -q first third
        cd second; git checkout -qb side HEAD~3; echo side >changing; git commit -qam side
        git rebase -q -X theirs main; git push -q origin side; cd ../first
        git merge -q side; git mv d1 moved; git commit -qm moved; git stash list
        git worktree add -q ../tree v1; cd ../tree; echo more >more; git add more; git commit -qm more
        cd ../first; git worktree list | wc -l; git gc -q --aggressive --prune=now; git repack -qadf
        git fsck --strict --full
        git count-objects -v | sed -n 's/^count: //p'
        cd ../third; git pull -q; git status --porcelain; git log --format=%s -1
        git worktree prune; cd ../second; git gc -q; git fsck --strict; git status --porcelain; cd ..; cmp first/changing third/changing
        cd first; git worktree remove ../tree; ls .. | tr '\n' ' '"#;
    let said = script(machine, text).arg(files).succeeds();
    // Two trees, no loose object, and a pull that brought the last commit.
    assert_eq!(said.text(), "2\n0\nmoved\nconfig first second third ");
    assert_eq!(said.errors(), "");
}

fn sqlite_keeps_a_database_in_every_journal_mode(mut machine: Machine) {
    let files = once(&mut machine);
    use_sqlite(&machine, &files);
}

fn use_sqlite(machine: &Machine, files: &Path) {
    for mode in ["delete", "truncate", "persist", "wal"] {
        let folder = files.join(mode);
        machine.run("mkdir", &[&folder]);
        let mut command = python(machine, "sqlite");
        command.arg(&folder).arg(mode).succeeds();
    }
}

fn programs_are_compiled_and_run(mut machine: Machine) {
    let files = once(&mut machine);
    let text = r#"cd "$1"; mkdir src include
        for n in 1 2 3 4 5 6; do
            printf 'int f%d(void);\n' "$n" >>include/all.h
            printf '#include "all.h"\nint f%d(void) { return %d; }\n' "$n" "$n" >"src/f$n.c"
        done
        printf '#include "all.h"\n#include <stdio.h>\nint main(void) { printf("%%d\\n", f1()+f2()+f3()+f4()+f5()+f6()); }\n' >src/main.c
        for c in src/*.c; do gcc -g -O2 -Iinclude -MMD -c -o "${c%.c}.o" "$c" & done; wait
        ar rcs lib.a src/f*.o; gcc -g -o program src/main.o lib.a; ./program; strip program; ./program
        gcc -shared -fPIC -o libshared.so src/f1.c -Iinclude
        gcc -pipe -flto -O2 -Iinclude -o whole src/*.c; ./whole"#;
    assert_eq!(script(&machine, text).arg(&files).succeeds().text(), "21\n21\n21\n");
}

#[test]
fn cargo_builds_a_crate_and_builds_what_was_changed_again() {
    let mut machine = Machine::root();
    let files = once(&mut machine);
    // The tools themselves: what stands for them finds them in the home of whoever runs the tests.
    let tools = Path::new(env!("CARGO")).parent().unwrap();
    let text = r#"cd "$1"; mkdir -p made/src made/tests; cd made
        printf '[package]\nname = "made"\nversion = "0.1.0"\nedition = "2024"\n[workspace]\n' >Cargo.toml
        printf 'fn main() { println!("cargo::rustc-env=BUILT=built"); }\n' >build.rs
        printf 'pub fn twice(n: u32) -> u32 { 2 * n }\n' >src/lib.rs
        printf 'fn main() { println!("{} {}", env!("BUILT"), made::twice(21)); }\n' >src/main.rs
        printf '#[test] fn it_is_twice() { assert_eq!(made::twice(2), 4) }\n' >tests/it.rs
        cargo build -q --offline; target/debug/made
        cargo build --offline 2>&1 | grep -c Compiling || true
        printf 'pub fn twice(n: u32) -> u32 { 3 * n }\n' >src/lib.rs
        cargo build -q --offline; target/debug/made
        cargo test -q --offline >said 2>&1 && exit 1; grep -o 'test result: FAILED' said
        cargo clean -q; ls -A | tr '\n' ' '"#;
    let mut command = script(&machine, text);
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("CARGO_HOME", machine.at("work/cargo"));
    let said = command.arg(&files).succeeds().text();
    let expected = "built 42\n0\nbuilt 63\ntest result: FAILED\nCargo.lock Cargo.toml build.rs said src tests ";
    assert_eq!(said, expected);
}

fn names_may_have_any_bytes_and_paths_any_depth(mut machine: Machine) {
    let files = once(&mut machine);
    python(&machine, "names").arg(&files).succeeds();
}

fn a_file_may_be_larger_than_memory_and_disk(mut machine: Machine) {
    let files = once(&mut machine);
    python(&machine, "sparse").arg(files.join("f")).arg((1_u64 << 40).to_string()).succeeds();
}

/// A tree with everything that an archive keeps: made below `$1/tree`.
const TREE: &str = r#"cd "$1"; mkdir -p tree/deep/er 'tree/with space'
    printf text >tree/file; printf other >'tree/with space/ü'; head -c 3000000 /dev/urandom >tree/deep/large
    ln tree/deep/large tree/deep/er/linked; ln -s ../file tree/deep/link; ln -s nowhere tree/dangling; mkfifo tree/fifo
    truncate -s 40M tree/sparse; printf end >>tree/sparse
    setfattr -n user.colour -v blue tree/file; setfattr -n user.empty tree/deep
    chmod 4751 tree/file; chmod 1777 tree/deep/er; chmod 400 tree/deep/large
    touch -d '1999-12-31 23:59:58.123456789' tree/file tree/deep/er; touch -h -d 2001-02-03 tree/deep/link
    touch -d 1965-04-03 tree/deep"#;

/// What there is to know of all that is below `$2`, in lines that are equal if it is.
const LIST: &str = r#"cd "$2"; find . -printf '%p %y %m %u %g %n %l %T@ ' \( -type d -printf '\n' -o -printf '%s\n' \) | sort
    find . -type f -print0 | sort -z | xargs -0 cksum; getfattr -R -h -d . | cat"#;

fn an_archive_comes_out_as_it_went_in(mut machine: Machine) {
    let files = once(&mut machine);
    let work = machine.at("work");
    script(&machine, TREE).arg(&files).succeeds();
    let text = r#"cd "$1"; tar --xattrs --xattrs-include='*' -S -cf "$2/a.tar" tree; mkdir "$2/here" there
        tar --xattrs --xattrs-include='*' -xpf "$2/a.tar" -C "$2/here"; tar --xattrs --xattrs-include='*' -xpf "$2/a.tar" -C there
        tar --compare -f "$2/a.tar""#;
    let said = script(&machine, text).args([&files, &work]).succeeds();
    assert_eq!(said.text(), "");
    let list = |at: &Path| script(&machine, LIST).arg(&files).arg(at).succeeds().text();
    let expected = list(&work.join("here/tree"));
    assert!(expected.contains("user.colour=\"blue\"") && expected.contains("./sparse f 644"), "{expected}");
    assert_eq!(list(&files.join("tree")), expected);
    assert_eq!(list(&files.join("there/tree")), expected);
    let rooms = "du -k \"$1/there/tree/sparse\" | cut -f1";
    let room: u32 = script(&machine, rooms).arg(&files).succeeds().text().trim().parse().unwrap();
    assert!(room < 1000, "{room} KiB are taken by a hole");
}

fn rsync_has_nothing_left_to_do_the_second_time(mut machine: Machine) {
    let files = once(&mut machine);
    let work = machine.at("work");
    script(&machine, TREE).arg(&work).succeeds();
    // From the disk to the mount, within the mount, and back.
    let steps = [work.join("tree"), files.join("one"), files.join("two"), work.join("three")];
    for step in steps.windows(2) {
        let rsync = || {
            let mut command = machine.command("rsync");
            command
                .args(["-aHAXS", "--modify-window=-1", "--delete", "--itemize-changes"])
                .arg(format!("{}/", step[0].display()));
            command.arg(&step[1]).succeeds().text()
        };
        assert_ne!(rsync(), "");
        assert_eq!(rsync(), "", "{} to {}", step[0].display(), step[1].display());
    }
    let list = |at: &Path| script(&machine, LIST).arg(&files).arg(at).succeeds().text();
    assert_eq!(list(&steps[3]), list(&steps[0]));
}

fn open_files_go_on_whatever_happens_to_their_names(mut machine: Machine) {
    let files = once(&mut machine);
    python(&machine, "open_files").arg(&files).succeeds();
}

fn what_happens_through_the_mount_is_told_by_inotify(mut machine: Machine) {
    let files = once(&mut machine);
    python(&machine, "watch").arg(&files).succeeds();
}

fn df_tells_the_room_of_the_exports_disk(mut machine: Machine) {
    machine.small_disk("files-beta", 8 << 20, 100);
    let files = once(&mut machine);
    let df = |at: &Path| {
        let args = ["--block-size=1", "--output=size,used,avail,itotal,iused,iavail"];
        machine.command("df").args(args).arg(at).succeeds().text()
    };
    script(&machine, "head -c 3000000 /dev/zero >$1/f; sync $1/f").arg(&files).succeeds();
    let there = df(&machine.at("files-beta"));
    assert!(there.contains(&(8 << 20).to_string()), "{there}");
    assert_eq!(df(&files), there);
}

#[test]
fn a_programs_cases_hold_in_one_mount() {
    let mut machine = Machine::root();
    let files = once(&mut machine);
    hold_cases(&machine, &files);
}

/// A mount that alone changes what it shows.
fn single(machine: &mut Machine) -> PathBuf {
    machine.node("beta");
    machine.mount_as("single", &["--single-writer", "beta/fs/files"])
}

#[test]
fn a_programs_cases_hold_in_a_mount_with_a_single_writer() {
    let mut machine = Machine::root();
    let files = single(&mut machine);
    hold_cases(&machine, &files);
}

fn programs_run_in_a_mount_with_a_single_writer(mut machine: Machine) {
    let files = single(&mut machine);
    python(&machine, "open_files").arg(&files).succeeds();
    use_git(&machine, &files);
    use_sqlite(&machine, &files);
}

/// What the kernel has of a file is opened, read and closed by it alone, whatever its daemon does.
#[test]
fn a_mount_with_a_single_writer_is_not_asked_to_open_and_close() {
    let mut machine = Machine::root();
    let files = single(&mut machine);
    script(&machine, "head -c 100000 /dev/zero >$1/f").arg(&files).succeeds();
    let unasked = |machine: &Machine, at: &Path, file: &Path| {
        let daemon =
            machine.command("pgrep").args(["-f", &format!("foreground.* {}$", at.display())]).succeeds().text();
        python(machine, "unasked").arg(daemon.trim()).arg(file).done()
    };
    let said = unasked(&machine, &files, &files.join("f"));
    assert!(said.status.success(), "{}", said.errors());
    // Another mount is asked each time.
    let asked = machine.mount();
    let said = unasked(&machine, &asked, &asked.join("beta/fs/files/f"));
    assert!(said.errors().contains("the daemon was asked each time"), "{}", said.errors());
}

#[test]
fn a_change_by_another_shows_where_there_should_be_a_single_writer() {
    let mut machine = Machine::root();
    let files = single(&mut machine);
    script(&machine, "echo one >$1/f; cat $1/f").arg(&files).succeeds();
    machine.run("sh", &["-c", &format!("echo by another >{}", machine.at("files-beta/f").display())]);
    until("the change shows", || script(&machine, "cat $1/f").arg(&files).succeeds().text() == "by another\n");
}

fn hold_cases(machine: &Machine, files: &Path) {
    let program = guest(machine);
    let cases = "create directories listing names renaming replacing moving links symlinks attributes owners appending sparse \
                 unlinked mapped mapped-to-read statfs xattrs";
    for case in cases.split_whitespace() {
        machine.command(&program).arg(case).args([files; 3]).succeeds();
    }
}
