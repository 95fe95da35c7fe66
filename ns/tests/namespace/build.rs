//! Namespaces from their text, and the text of a namespace: one is as good as the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ns::text::{Flags, Line, PEER_LINES};
use ns::{Build, Dialer, Error, Namespace};
use p9::{Errno, FileKind, NodeRef, Reply};
use proptest::prelude::*;

use crate::support::{self, Asked, Dead, Files, Numbered, create, lines, names, read, walk};

/// Reaches `tN`, a tree of numbered files; `dead`, which answers nothing; and `files`.
#[derive(Default)]
struct Servers {
    files: Option<NodeRef>,
    dials: AtomicUsize,
}

impl Dialer for Servers {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let root = match server {
            "dead" => Some(Dead::node()),
            "files" => self.files.clone(),
            _ => server.strip_prefix('t').and_then(|number| number.parse().ok()).map(|n: u64| Numbered::root(n * 100)),
        };
        match (root, spec) {
            (None, _) => Errno::ENOENT.into(),
            (Some(root), "") => Reply::ok(root),
            (Some(root), spec) => Reply::later(async move {
                Ok(root.walk(&[support::name(spec)], p9::Want::default()).await?.reached()?.node)
            }),
        }
    }
}

async fn build(text: &str) -> Result<Namespace, Error> {
    build_with(text, &Servers::default()).await
}

async fn build_with(text: &str, dialer: &dyn Dialer) -> Result<Namespace, Error> {
    let variable = |name: &str| (name == "u").then(|| "/home/u".to_string());
    let built = Build { dialer, variable: &variable, most: PEER_LINES }.build(&lines(text)).await;
    built.map_err(|failed| failed.error)
}

#[tokio::test]
async fn a_namespace_file_makes_a_namespace_seen_from_where_it_changes_to() {
    let files = Files::new(&["home/u/f", "bin/sh"]);
    let servers = Servers { files: Some(files.root().await), ..Servers::default() };
    let text =
        "mount -c files /\nmount t1 /n/t1\ncd /n\nbind t1 it\nbind -a ../home/u /bin\nmount t2 t2/x x\nunmount it\n";
    let ns = build_with(text, &servers).await.unwrap();
    assert_eq!(names(&ns, "/n").await, ["t1", "t2"]);
    assert_eq!(read(&ns, "/n/t2/x").await.unwrap(), "x", "a file is mounted by its spec");
    assert_eq!(names(&ns, "/bin").await, ["sh", "f"]);
    let printed = "mount -c files /\nmount t1 /n/t1\nbind -a /home/u /bin\nmount t2 /n/t2/x x\n";
    assert_eq!(ns.to_text(), printed, "what has no effect any more is not printed, and paths are whole");
}

#[tokio::test]
async fn a_line_that_fails_names_itself() {
    let why = Errno::ENOENT.to_string();
    let dial = Error::Dial { server: "nobody".into(), errno: Errno::ENOENT, why };
    assert_eq!(build("mount t1 /\nmount nobody /x\n").await.err(), Some(dial));
    let kind = Error::Kind { new: "t1".into(), old: "/x".into() };
    assert_eq!(build("mount t1 /\nmount t1 /x\n").await.err(), Some(kind), "a directory on a file");
    let path = Error::Path { path: "/no".into(), errno: Errno::ENOENT };
    assert_eq!(build("bind /no /x\n").await.err(), Some(path));
    assert_eq!(build("unmount /x\n").await.err(), Some(Error::NotMounted("/x".into())));
    let many = vec![lines("mount t1 /x\n").remove(0); 1025];
    let servers = Servers::default();
    let build = Build { dialer: &servers, variable: &|_| None, most: PEER_LINES };
    let failed = build.build(&many).await.err().unwrap();
    assert_eq!((failed.index, failed.error), (PEER_LINES, Error::Full(PEER_LINES)));
    assert_eq!(servers.dials.into_inner(), 0, "nobody is dialled for a text that is too long");
}

#[tokio::test]
async fn a_line_that_may_fail_is_passed_over_and_leaves_no_trace() {
    let text = "mount t1 /\nmount -q nobody /n\nmount -q t2 /x\nbind -q /no /b\nunmount -q /c\nmount -aq t2 /\n";
    let ns = build(text).await.unwrap();
    assert_eq!(ns.to_text(), "mount t1 /\nmount -aq t2 /\n", "what is done though it might have failed still may");
    assert_eq!(names(&ns, "/").await, ["x", "y", "z", "x", "y", "z"]);
    let error = Some(Error::NotMounted("/c".into()));
    assert_eq!(build("mount t1 /\nunmount /c\n").await.err(), error);
}

#[tokio::test]
async fn a_namespace_is_cleared_and_begins_anew() {
    let ns = build("mount t1 /a\nbind /a /b\nclear\nmount t2 /c\n").await.unwrap();
    assert_eq!((ns.to_text().as_str(), names(&ns, "/").await), ("mount t2 /c\n", vec!["c".to_string()]));
}

#[tokio::test]
async fn a_file_is_included_from_the_namespace_as_it_is_by_then() {
    let files = Files::new(&["lib/ns", "lib/self", "lib/bad", "home/u/f"]);
    let put = |path: &str, text: &str| std::fs::write(files.path().join(path), text).unwrap();
    put("lib/ns", "mount t1 /n/t1\nbind -a $u /bin\ncd /n\n. -q /missing\n");
    put("lib/self", ". self\n");
    put("lib/bad", "cd /\nmout x\n");
    let servers = Servers { files: Some(files.root().await), ..Servers::default() };
    let ns = build_with(". -q /lib/ns\nmount files /\n. /lib/ns\nbind t1 t2\n", &servers).await.unwrap();
    let text = "mount files /\nmount t1 /n/t1\nbind -a /home/u /bin\nbind /n/t1 /n/t2\n";
    assert_eq!(ns.to_text(), text, "it is not there at first, and its `cd` lasts");
    let fails = async |text: &str| build_with(text, &servers).await.err().unwrap();
    let depth = fails("mount files /\ncd /lib\n. self\n").await;
    assert_eq!(depth, Error::Depth("/lib/self".into()));
    let bad = fails("mount files /\n. /lib/bad\n").await.to_string();
    assert_eq!(bad, "/lib/bad: line 2, column 1: expected mount, bind, unmount, import, cd, clear or `.`, not mout");
    let missing = Error::Path { path: "/no".into(), errno: Errno::ENOENT };
    assert_eq!(fails("mount files /\n. /no\n").await, missing);
    put("lib/bad", "cd /\n\nbind /no /x\n");
    assert!(matches!(fails("mount files /\n. -q /lib/bad\n").await, Error::Included { .. }), "what is there is right");
    let bad = fails("mount files /\n. /lib/bad\n").await;
    assert_eq!(bad.to_string(), format!("/lib/bad:3: /no: {}", Errno::ENOENT));
    assert!(matches!(bad.cause(), Error::Path { .. }));
    put("lib/bad", &"cd /\n".repeat(PEER_LINES));
    let long = fails("mount files /\n. /lib/bad\n").await.to_string();
    assert_eq!(long, "/lib/bad: line 1023, column 1: expected the end: it may have 1022 lines");
    assert_eq!(fails("mount files /\n. /lib\n").await, Error::Path { path: "/lib".into(), errno: Errno::EISDIR });
}

/// Reaches any server after a while.
struct Slow;

impl Dialer for Slow {
    fn dial<'a>(&'a self, _server: &'a str, _spec: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Numbered::root(1))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn all_servers_are_dialled_at_once() {
    let text: String = (0..100).map(|n| format!("mount s{n} /n/{n}\n")).collect();
    let began = tokio::time::Instant::now();
    build_with(&text, &Slow).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 1);
}

#[tokio::test]
async fn a_namespace_is_a_value() {
    let ns = build("mount t1 /a\n").await.unwrap();
    let clone = ns.clone();
    ns.bind("/a", "/b", Flags::default()).await.unwrap();
    assert_eq!(clone.to_text(), ns.to_text(), "clones are the same namespace");
    assert_eq!(ns.lines(), lines(&ns.to_text()));
}

#[tokio::test]
async fn lines_are_forgotten_only_where_nothing_was_made_in_their_light() {
    for (text, printed) in [
        ("mount t1 /a\nmount t2 /a\n", "mount t2 /a\n"),
        ("mount t1 /a\nunmount /a\n", ""),
        ("mount t1 /a\nbind /a /a\n", "mount t1 /a\nbind /a /a\n"),
        ("mount t1 /a\nbind /a /b\nunmount /a\n", "mount t1 /a\nbind /a /b\nunmount /a\n"),
        ("mount t1 /a\nbind /a /b\nmount t2 /a\n", "mount t1 /a\nbind /a /b\nmount t2 /a\n"),
        // What is kept for others goes with them.
        ("mount t1 /a\nbind /a /b\nunmount /a\nunmount /b\n", ""),
        ("mount t1 /a\nbind /a /b\nbind /b /c\nunmount /a\nunmount /b\nunmount /c\n", ""),
        ("mount t1 /a\nmount t2 /b\nbind /a /b\nbind /b /a\nunmount /a\nunmount /b\n", ""),
        ("mount t1 /a\nbind /a /b\nmount t2 /a\nunmount /b\n", "mount t2 /a\n"),
        ("mount t1 /a\nbind /a /b\nunmount /a\nmount t2 /a\nunmount /b\n", "mount t2 /a\n"),
        ("mount t1 /a\nmount -a t2 /a\nunmount t2 /a\n", "mount t1 /a\n"),
        ("mount t1 /a\nmount -a t2 /a\nunmount t1 /a\n", "mount t1 /a\nmount -a t2 /a\nunmount t1 /a\n"),
        ("mount t1 /a\nmount -a t2 /a/q\nunmount /a\n", "mount t1 /a\nmount -a t2 /a/q\nunmount /a\n"),
    ] {
        assert_eq!(build(text).await.unwrap().to_text(), printed, "{text}");
    }
}

#[tokio::test]
async fn a_directory_is_not_bound_below_itself_and_nothing_changes() {
    let ns = build("mount t1 /a\n").await.unwrap();
    for (new, old) in [("/a", "/a/b"), ("/a/", "/a/b/../c/d"), ("/", "/a"), ("/", "/x"), ("/none", "/none/x")] {
        for flags in ["", "-a", "-bc"] {
            let refused = ns.bind(new, old, support::flags(flags)).await.unwrap_err();
            assert!(matches!(refused, Error::Loop { .. }), "{refused}");
        }
    }
    ns.bind("/a", "/ab", Flags::default()).await.unwrap();
    ns.bind("/a", "/a", Flags::default()).await.unwrap();
    assert_eq!(ns.to_text(), "mount t1 /a\nbind /a /ab\nbind /a /a\n");
}

#[tokio::test]
async fn the_namespace_of_a_command_takes_few_requests_of_its_caller() {
    let files = Files::new(&["tmp/f", "home/u/g", "etc/passwd"]);
    let asked = Asked::new(files.root().await);
    let servers = Servers { files: Some(asked.root()), ..Servers::default() };
    let text =
        "mount -c files /\nmount -bc t1 /tmp\nmount t2 /proc\nmount t3 /sys\nmount t4 /n/b/fs\nmount files /mnt/term\n";
    let ns = build_with(text, &servers).await.unwrap();
    assert!(asked.count() <= 5, "one for each mount point, all but that of the union at once: {}", asked.count());
    assert_eq!(names(&ns, "/tmp").await, ["x", "y", "z", "f"]);
    assert_eq!(create(&ns, "/tmp", "new").await, Err(Errno::EROFS), "new files go to the private one");
    create(&ns, "/home/u", "new").await.unwrap();
    assert!(files.has("home/u/new"));
}

/// All that can be seen below `dir`, three levels deep: path, kind and contents.
async fn seen(ns: &Namespace, dir: String, depth: usize, all: &mut Vec<String>) {
    for name in names(ns, &dir).await {
        let path = format!("{}/{name}", dir.trim_end_matches('/'));
        let node = walk(ns, &path).await.unwrap();
        all.push(format!("{path} {:?}", node.qid()));
        match node.qid().kind {
            FileKind::Dir if depth > 0 => Box::pin(seen(ns, path, depth - 1, all)).await,
            FileKind::Dir => {}
            _ => all.push(read(ns, &path).await.unwrap()),
        }
    }
}

fn line() -> impl Strategy<Value = Line> {
    let path =
        || prop::sample::select(vec!["/", "/a", "/b", "/a/c", "/a/c/d", "/b/x", "/a/y"]).prop_map(str::to_string);
    let server = prop::sample::select(vec!["t1", "t2", "t3"]).prop_map(str::to_string);
    let flags =
        prop::sample::select(vec!["", "-a", "-b", "-ac", "-bc", "-c", "-am", "-bcm", "-m"]).prop_map(support::flags);
    let spec = prop::sample::select(vec!["", "", "", "x"]).prop_map(str::to_string);
    prop_oneof![
        4 => (flags.clone(), server.clone(), path(), spec)
            .prop_map(|(flags, server, old, spec)| Line::Mount { flags, server, old, spec }),
        4 => (flags, path(), path()).prop_map(|(flags, new, old)| Line::Bind { flags, new, old }),
        2 => path().prop_map(|old| Line::Unmount { new: None, old, quiet: false }),
        1 => (server, path()).prop_map(|(new, old)| Line::Unmount { new: Some(new), old, quiet: false }),
        1 => (path(), path()).prop_map(|(new, old)| Line::Unmount { new: Some(new), old, quiet: false }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_text_of_a_namespace_rebuilds_it(lines in prop::collection::vec(line(), 0..14)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let ns = Namespace::new();
            for line in lines {
                // Those that are refused change nothing.
                let _ = match &line {
                    Line::Mount { flags, server, old, spec } => match Servers::default().dial(server, spec).await {
                        Ok(root) => ns.mount(server, spec, root, old, *flags).await,
                        Err(_) => Ok(()),
                    },
                    Line::Bind { flags, new, old } => ns.bind(new, old, *flags).await,
                    Line::Unmount { new, old, .. } => ns.unmount(new.as_deref(), old).await,
                    _ => Ok(()),
                };
            }
            let text = ns.to_text();
            let again = build(&text).await.unwrap_or_else(|err| panic!("{err}\n{text}"));
            assert!(again.lines().len() <= ns.lines().len(), "{text}");
            let (mut one, mut other) = (Vec::new(), Vec::new());
            seen(&ns, "/".into(), 3, &mut one).await;
            seen(&again, "/".into(), 3, &mut other).await;
            assert_eq!(one, other, "{}", text);
        });
    }
}
