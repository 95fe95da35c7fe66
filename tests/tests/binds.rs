//! `slashn bind` and `unbind`: a namespace is changed while it is used, and everybody sees that at once.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::io::Read;
use std::path::PathBuf;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    what_is_bound_is_seen_at_once_and_what_is_open_stays
    an_open_directory_is_listed_as_it_is_after_a_bind
    a_union_is_made_and_taken_apart_while_it_is_looked_at
    the_text_of_a_mount_makes_the_same_mount
    what_cannot_be_bound_says_why_and_changes_nothing
    what_is_removed_from_a_union_with_marks_is_gone_and_stays_where_it_was
}

/// Alpha with the folders `a` (with `x` and `both`) and `b` (with `y` and `both`), and its grid. Gives the mount and
/// the export there.
fn grid(machine: &mut Machine) -> (PathBuf, PathBuf) {
    machine.node("alpha");
    let files = machine.at("files-alpha");
    machine.run("mkdir", &[files.join("a"), files.join("b")]);
    for name in ["a/x", "a/both", "b/y", "b/both"] {
        machine.run("sh", &["-c", &format!("echo {name} >{}", files.join(name).display())]);
    }
    let n = machine.mount();
    let export = n.join("alpha/fs/files");
    (n, export)
}

/// The names in a folder, sorted; asked as the machine's user.
fn names(machine: &Machine, dir: &std::path::Path) -> String {
    machine.run("ls", &[dir]).text().replace('\n', " ")
}

/// The contents of a file.
fn cat(machine: &Machine, file: &std::path::Path) -> String {
    machine.run("cat", &[file]).text().trim_end().to_string()
}

fn what_is_bound_is_seen_at_once_and_what_is_open_stays(mut machine: Machine) {
    let (n, export) = grid(&mut machine);
    let (a, b) = (export.join("a"), export.join("b"));
    let bind = |new: &PathBuf, old: &PathBuf| {
        machine.slashn(&["bind", new.to_str().unwrap(), old.to_str().unwrap()]).succeeds();
    };
    assert_eq!((names(&machine, &a), names(&machine, &n)), ("both x ".into(), "alpha ".into()));
    // Somebody has a file and the folder open.
    let script = format!("cd {}; exec 3<both; echo; read line; cat <&3; ls; cat y", a.display());
    let mut shell = machine.command("sh");
    let mut shell = shell.args(["-c", &script]).stdin(std::process::Stdio::piped());
    shell = shell.stdout(std::process::Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    bind(&b, &a);
    assert_eq!((names(&machine, &a), cat(&machine, &a.join("both"))), ("both y ".into(), "b/both".into()));
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), b"\n").unwrap();
    let said = String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said, "a/both\nboth\ny\nb/y\n", "what is open stays, and who is there sees what is there now");
    bind(&b, &n.join("new/deep"));
    // A directory that is seen at two places is two to the kernel, or one would go where the other is; a file is one.
    let numbers = |name: &str| {
        let at = [b.join(name), n.join("new/deep").join(name)];
        let text = machine.run("stat", &[&[PathBuf::from("-c"), "%i".into()], &at[..]].concat()).text();
        text.lines().map(str::to_string).collect::<Vec<_>>()
    };
    let (dirs, files) = (numbers("."), numbers("y"));
    assert!(dirs[0] != dirs[1] && files[0] == files[1], "{dirs:?} {files:?}");
    assert_eq!((names(&machine, &n), names(&machine, &n.join("new/deep"))), ("alpha new ".into(), "both y ".into()));
    for i in 0..20 {
        let (from, file) = if i % 2 == 0 { (&b, "b/both") } else { (&n.join("alpha/fs/files"), "") };
        bind(from, &n.join("turns"));
        match file {
            "" => assert_eq!(names(&machine, &n.join("turns")), "a b "),
            file => assert_eq!(cat(&machine, &n.join("turns/both")), file),
        }
    }
    machine.slashn(&["unbind", a.to_str().unwrap()]).succeeds();
    assert_eq!((names(&machine, &a), cat(&machine, &a.join("both"))), ("both x ".into(), "a/both".into()));
    // A file on a file, by the names that `slashn ns` prints.
    machine
        .slashn(&["bind", "/n/alpha/fs/files/b/y", "/n/alpha/fs/files/a/x", "--mount", n.to_str().unwrap()])
        .succeeds();
    assert_eq!(cat(&machine, &a.join("x")), "b/y");
    machine.slashn(&["unbind", a.join("x").to_str().unwrap()]).succeeds();
    assert_eq!(cat(&machine, &a.join("x")), "a/x");
}

fn an_open_directory_is_listed_as_it_is_after_a_bind(mut machine: Machine) {
    let (_, export) = grid(&mut machine);
    machine.run("mkdir", &[export.join("a/sub"), export.join("b/dir")]);
    let (a, b) = (export.join("a"), export.join("b"));
    // Listed before, so that it is known what it holds.
    (0..2).for_each(|_| assert_eq!(names(&machine, &a), "both sub x "));
    let program = "import os, sys, subprocess\n\
        a, b = sys.argv[1:]; fd = os.open(a, os.O_RDONLY)\n\
        def told(): return sorted(os.listdir(fd)), sorted(os.listdir(a))\n\
        print(*told())\n\
        subprocess.run(['slashn', 'bind', b, a], check=True); print(*told())\n\
        subprocess.run(['slashn', 'unbind', a], check=True); print(*told())";
    let said = machine.command("/usr/bin/python3").args(["-c", program]).args([&a, &b]).succeeds().text();
    let (before, bound) = ("['both', 'sub', 'x']", "['both', 'dir', 'y']");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], [before, bound].map(|names| format!("{names} {names}")));
    // It may stay what it became, but is never a part of one or the other.
    assert!([before, bound].map(|names| format!("{names} {before}")).contains(&lines[2].into()), "{said}");
}

fn a_union_is_made_and_taken_apart_while_it_is_looked_at(mut machine: Machine) {
    let (n, export) = grid(&mut machine);
    let (a, b, files) = (export.join("a"), export.join("b"), machine.at("files-alpha"));
    let at = |path: &PathBuf| path.to_str().unwrap().to_string();
    assert_eq!((names(&machine, &a), cat(&machine, &a.join("both"))), ("both x ".into(), "a/both".into()));
    machine.slashn(&["bind", "-bc", &at(&b), &at(&a)]).succeeds();
    assert_eq!(names(&machine, &a), "both both x y ");
    assert_eq!((cat(&machine, &a.join("both")), cat(&machine, &a.join("x"))), ("b/both".into(), "a/x".into()));
    machine.run("sh", &["-c", &format!("echo new >{}/new", a.display())]);
    assert!(files.join("b/new").exists() && !files.join("a/new").exists());
    assert_eq!(cat(&machine, &a.join("new")), "new");
    machine.slashn(&["unbind", &at(&b), &at(&a)]).succeeds();
    assert_eq!((names(&machine, &a), cat(&machine, &a.join("both"))), ("both x ".into(), "a/both".into()));
    machine.command("cat").arg(a.join("new")).exits(1);
    // The root itself.
    machine.slashn(&["bind", "-a", &at(&b), &at(&n)]).succeeds();
    assert_eq!((names(&machine, &n), cat(&machine, &n.join("y"))), ("alpha both new y ".into(), "b/y".into()));
    machine.slashn(&["unbind", &at(&b), &at(&n)]).succeeds();
    assert_eq!(names(&machine, &n), "alpha ");
    machine.command("cat").arg(n.join("y")).exits(1);
    // Directories of one name are one where that is wanted.
    machine.run("sh", &["-c", "cd ../files-alpha; mkdir a/d b/d; echo 1 >a/d/1; echo 2 >b/d/2"]);
    for (flags, from) in [("-cm", &a), ("-am", &b)] {
        machine.slashn(&["bind", flags, &at(from), &at(&n.join("m"))]).succeeds();
    }
    assert_eq!(
        (names(&machine, &n.join("m")), names(&machine, &n.join("m/d"))),
        ("both d new x y ".into(), "1 2 ".into())
    );
    machine.run("sh", &["-c", &format!("cd {}/m/d && echo 3 >3 && cat 1 2 3", n.display())]);
    assert!(files.join("a/d/3").exists());
    // A node is mounted by its name.
    machine.slashn(&["bind", "alpha", &at(&n.join("again"))]).succeeds();
    assert_eq!(names(&machine, &n.join("again/fs/files/b")), "both d new y ");
}

fn the_text_of_a_mount_makes_the_same_mount(mut machine: Machine) {
    let (n, export) = grid(&mut machine);
    let at = |path: PathBuf| path.to_str().unwrap().to_string();
    for args in [
        &["bind", &at(export.join("a")), &at(n.join("it's $here"))][..],
        &["bind", "-a", &at(export.join("b")), &at(n.join("it's $here"))],
        &["bind", "-bc", &at(export.join("b")), &at(export.join("a"))],
        &["bind", &at(export.join("a/x")), &at(export.join("b/y"))],
        &["bind", "-q", &at(n.join("none")), &at(n.join("x"))],
        &["unbind", &at(export.join("b")), &at(export.join("a"))],
    ] {
        machine.slashn(args).succeeds();
    }
    let text = machine.slashn(&["ns", &at(n.clone())]).succeeds().text();
    machine.write("text", &text);
    let m = machine.mount_as("m", &["--ns", "text"]);
    assert_eq!(machine.slashn(&["ns", &at(m.clone())]).succeeds().text(), text);
    let seen = |top: &PathBuf| {
        let find = format!("cd {} && find it* alpha/fs | sort && cat it*/* alpha/fs/files/*/*", top.display());
        machine.run("sh", &["-c", &find]).text()
    };
    assert_eq!(seen(&n), seen(&m));
}

fn what_cannot_be_bound_says_why_and_changes_nothing(mut machine: Machine) {
    let (n, export) = grid(&mut machine);
    let at = |path: PathBuf| path.to_str().unwrap().to_string();
    let (a, b) = (at(export.join("a")), at(export.join("b")));
    machine.slashn(&["bind", "-a", &b, &a]).succeeds();
    let text = machine.slashn(&["ns", &at(n.clone())]).succeeds().text();
    let (file, none, m) = (format!("{a}/x"), at(n.join("none")), at(machine.at("m")));
    for (args, part) in [
        (&["bind", &file, &b][..], "a directory goes on a directory"),
        (&["bind", &b, &file], "a directory goes on a directory"),
        (&["bind", "-a", &file, &format!("{b}/y")], "files have no unions"),
        (&["bind", &none, &b], "/none: No such file"),
        (&["bind", "-c", &a, &b], "in which nothing can be created"),
        (&["bind", "nobody", &b], "mount nobody: no node of that name is known"),
        (&["bind", &at(export.clone()), &format!("{a}/in")], "a directory is not bound below itself"),
        (&["unbind", &b], "not mounted"),
        (&["unbind", &none], "not mounted"),
        (&["unbind", &none, &a], "/none: No such file"),
        (&["unbind", &file, &a], "is not in the union"),
        (&["unbind", &at(n.clone())], "that is all that the mount shows; try: slashn unbind NEW"),
        (&["bind", &a, "/elsewhere", "--mount", &at(n.clone())], "it is not in the mount "),
        (&["bind", &a, &m, "--mount", &m], "no grid of mine is mounted there"),
    ] {
        machine.slashn(args).exits(1).complains(&[part]);
    }
    machine.slashn(&["bind", "", &b]).exits(2).complains(&["bind: '': is no path"]);
    machine.slashn(&["unbind", ""]).exits(2).complains(&["unbind: '': is no path"]);
    machine.slashn(&["bind", "-ab", &a, &b]).exits(2);
    assert_eq!(machine.slashn(&["ns", &at(n.clone())]).succeeds().text(), text);
    assert_eq!(names(&machine, &export.join("a")), "both both x y ");
}

fn what_is_removed_from_a_union_with_marks_is_gone_and_stays_where_it_was(mut machine: Machine) {
    let (n, export) = grid(&mut machine);
    let files = machine.at("files-alpha");
    machine.run("sh", &["-c", "cd ../files-alpha; mkdir -p top a/d/e; echo 1 >a/d/e/f; echo 2 >a/d/g"]);
    let (a, top, u) = (export.join("a"), export.join("top"), n.join("u"));
    for (flags, from) in [("-cw", &top), ("-am", &a)] {
        machine.slashn(&["bind", flags, from.to_str().unwrap(), u.to_str().unwrap()]).succeeds();
    }
    assert_eq!(names(&machine, &u), "both d x ");
    let script =
        "rm both && mv d moved && rm -r moved/e && echo 3 >x.new && mv x.new x && mkdir d && cp -r moved d/copy";
    machine.run("sh", &["-c", &format!("cd {} && {script}", u.display())]);
    let found = machine.run("sh", &["-c", &format!("cd {} && find . | sort && cat x d/copy/g", u.display())]).text();
    assert_eq!(found, ".\n./d\n./d/copy\n./d/copy/g\n./moved\n./moved/g\n./x\n3\n2\n");
    let behind = machine.run("sh", &["-c", "cd ../files-alpha/a && find . | sort && cat d/e/f d/g x both"]).text();
    assert_eq!(behind, ".\n./both\n./d\n./d/e\n./d/e/f\n./d/g\n./x\n1\n2\na/x\na/both\n");
    machine.run("sh", &["-c", &format!("rm -r {}/*", u.display())]);
    assert_eq!((names(&machine, &u), files.join("a/d/e/f").exists()), (String::new(), true));
}
