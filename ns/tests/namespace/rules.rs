//! Plan 9's rules of binding and mounting, each as a test: bind(2), namespace(6), and what Linux's callers add to them.

use ns::text::{Flags, OWN_LINES};
use ns::{Error, Namespace};
use p9::{Attr, Errno, FileKind, Handle, How, Node, Qid, Reply, What};

use crate::support::{self, Asked, Dead, Files, Numbered, create, names, ns, read, refused, walk, write};

#[tokio::test]
async fn rule_1_the_first_tree_that_has_the_first_name_wins_and_later_ones_are_not_tried() {
    let (a, b) = (Files::new(&["d/one"]), Files::new(&["d/two", "e/three"]));
    let ns = ns([("-c", "a", &a, "/"), ("-a", "b", &b, "/")]).await;
    assert_eq!(read(&ns, "/d/one").await.unwrap(), "d/one");
    assert_eq!(read(&ns, "/d/two").await, Err(Errno::ENOENT), "unions are one level deep");
    assert_eq!(read(&ns, "/e/three").await.unwrap(), "e/three");
    assert_eq!(names(&ns, "/d").await, ["one"], "directories of one name are not merged");
}

#[tokio::test]
async fn rule_2_a_union_lists_its_members_in_order_and_keeps_what_is_there_twice() {
    let (a, b, c) = (Files::new(&["both"]), Files::new(&["y"]), Files::new(&["both"]));
    let ns = ns([("", "a", &a, "/u"), ("-b", "b", &b, "/u"), ("-a", "c", &c, "/u")]).await;
    assert_eq!(names(&ns, "/u").await, ["y", "both", "both"]);
}

#[tokio::test]
async fn rule_2_a_member_that_fails_is_skipped_when_listing_and_walking() {
    let a = Files::new(&["x"]);
    let ns = ns([("", "a", &a, "/u")]).await;
    for flags in ["-b", "-a"] {
        ns.mount("dead", flags, Dead::node(), "/u", support::flags(flags)).await.unwrap();
    }
    assert_eq!(names(&ns, "/u").await, ["x"]);
    assert_eq!(read(&ns, "/u/x").await.unwrap(), "x");
    let missing = read(&ns, "/u/y").await;
    assert_eq!(missing, Err(Errno::EHOSTUNREACH), "what the dead one may have is not known to be missing");
}

#[tokio::test]
async fn rule_3_an_existing_file_is_opened_where_it_is() {
    let (a, b) = (Files::new(&["x"]), Files::new(&["f"]));
    let ns = ns([("-c", "a", &a, "/u"), ("-a", "b", &b, "/u")]).await;
    write(&ns, "/u", "f", "changed").await.unwrap();
    assert_eq!(b.text("f"), "changed");
    assert!(!a.has("f"));
}

#[tokio::test]
async fn rule_3_a_new_file_goes_to_the_first_member_that_allows_it_and_to_no_other() {
    let (a, b, c) = (Files::new(&["x"]), Files::read_only(&["y"]), Files::new(&["z"]));
    let ns = ns([("", "a", &a, "/u"), ("-ac", "b", &b, "/u"), ("-ac", "c", &c, "/u")]).await;
    assert_eq!(create(&ns, "/u", "new").await, Err(Errno::EROFS), "its failure is the answer");
    assert!(!a.has("new") && !c.has("new"));
    ns.unmount(Some("b"), "/u").await.unwrap();
    create(&ns, "/u", "new").await.unwrap();
    assert!(!a.has("new") && c.has("new"));
}

#[tokio::test]
async fn rule_3_a_mounted_directory_forbids_creation_unless_it_was_mounted_to_allow_it() {
    let (a, b) = (Files::new(&["d/x"]), Files::new(&["x"]));
    let ns = ns([("", "a", &a, "/a"), ("-c", "b", &b, "/b")]).await;
    assert_eq!(create(&ns, "/a", "new").await, Err(Errno::EACCES));
    create(&ns, "/a/d", "new").await.unwrap();
    create(&ns, "/b", "new").await.unwrap();
    ns.bind("/b", "/c", Flags::default()).await.unwrap();
    assert_eq!(create(&ns, "/c", "new2").await, Err(Errno::EACCES));
}

#[tokio::test]
async fn rule_4_the_directory_that_a_union_begins_with_allows_no_creation() {
    let (root, over) = (Files::new(&["bin/sh"]), Files::new(&["ls"]));
    let ns = ns([("-c", "root", &root, "/"), ("-a", "over", &over, "/bin")]).await;
    assert_eq!(names(&ns, "/bin").await, ["sh", "ls"]);
    assert_eq!(create(&ns, "/bin", "new").await, Err(Errno::EACCES));
    ns.bind("/bin", "/bin", support::flags("-bc")).await.unwrap_err();
    let more = Files::new(&[]);
    ns.mount("more", "", more.root().await, "/bin", support::flags("-bc")).await.unwrap();
    create(&ns, "/bin", "new").await.unwrap();
    assert!(!root.has("bin/new"));
}

#[tokio::test]
async fn rule_5_replacing_discards_the_list_and_more_joins_what_replaced_it() {
    let (old, a, b, c) = (Files::new(&["d/old"]), Files::new(&["a"]), Files::new(&["b"]), Files::new(&["c"]));
    let ns = ns([("", "old", &old, "/"), ("-a", "a", &a, "/d"), ("", "b", &b, "/d")]).await;
    assert_eq!(names(&ns, "/d").await, ["b"]);
    ns.mount("c", "", c.root().await, "/d", support::flags("-a")).await.unwrap();
    assert_eq!(names(&ns, "/d").await, ["b", "c"], "the directory beneath does not come back");
}

#[tokio::test]
async fn rule_6_binding_a_union_copies_its_list_as_it_is_then() {
    let (a, b, c) = (Files::new(&["a"]), Files::new(&["b"]), Files::new(&["c"]));
    let ns = ns([("", "a", &a, "/u"), ("-a", "b", &b, "/u")]).await;
    let refused = ns.bind("/u", "/v", support::flags("-c")).await;
    assert_eq!(refused, Err(Error::Create("/u".into())), "nothing in it may be created in");
    ns.bind("/u", "/v", Flags::default()).await.unwrap();
    ns.mount("c", "", c.root().await, "/u", support::flags("-bc")).await.unwrap();
    assert_eq!(names(&ns, "/v").await, ["a", "b"]);
    ns.bind("/u", "/w", support::flags("-c")).await.unwrap();
    create(&ns, "/w", "new").await.unwrap();
    assert!(c.has("new"));
}

#[tokio::test]
async fn rule_7_directories_go_on_directories_and_files_on_files_and_files_make_no_union() {
    let (a, b) = (Files::new(&["d/x", "f"]), Files::new(&["d/y", "f"]));
    let ns = ns([("", "a", &a, "/"), ("", "b", &b, "/b")]).await;
    let kind = |new: &str, old: &str| Err(Error::Kind { new: new.into(), old: old.into() });
    assert_eq!(ns.bind("/b/f", "/d", Flags::default()).await, kind("/b/f", "/d"));
    assert_eq!(ns.bind("/b/d", "/f", Flags::default()).await, kind("/b/d", "/f"));
    assert_eq!(ns.bind("/b/f", "/f", support::flags("-a")).await, kind("/b/f", "/f"));
    assert!(matches!(ns.bind("/b/d", "/d", support::flags("-ab")).await, Err(Error::Order(_))));
    ns.bind("/b/f", "/f", Flags::default()).await.unwrap();
    write(&ns, "/", "f", "through the bind").await.unwrap();
    assert_eq!((a.text("f").as_str(), b.text("f").as_str()), ("f", "through the bind"));
}

#[tokio::test]
async fn rule_8_unmounting_takes_all_or_that_member_and_says_what_is_not_there() {
    let (root, a, b) = (Files::new(&["u/beneath"]), Files::new(&["a"]), Files::new(&["b"]));
    let ns = ns([("", "root", &root, "/"), ("-a", "a", &a, "/u"), ("-a", "b", &b, "/u"), ("", "a", &a, "/a")]).await;
    let not_in = Error::NotInUnion { new: "c".into(), old: "/u".into() };
    assert_eq!(ns.unmount(Some("c"), "/u").await, Err(not_in));
    assert_eq!(ns.unmount(None, "/v").await, Err(Error::NotMounted("/v".into())));
    ns.unmount(Some("b"), "/u").await.unwrap();
    assert_eq!(names(&ns, "/u").await, ["beneath", "a"]);
    ns.unmount(Some("/a"), "/u").await.unwrap();
    assert_eq!(names(&ns, "/u").await, ["beneath"], "a path stands for what it leads to");
    create(&ns, "/u", "new").await.unwrap();
    ns.mount("b", "", b.root().await, "/u", Flags::default()).await.unwrap();
    ns.unmount(None, "/u").await.unwrap();
    assert_eq!(read(&ns, "/u/beneath").await.unwrap(), "u/beneath");
    assert_eq!(read(&ns, "/u/new").await.unwrap(), "");
}

#[tokio::test]
async fn rule_9_a_bind_means_what_its_name_led_to_then() {
    let (a, b) = (Files::new(&["a"]), Files::new(&["b"]));
    let ns = ns([("", "a", &a, "/x")]).await;
    ns.bind("/x", "/y", Flags::default()).await.unwrap();
    ns.mount("b", "", b.root().await, "/x", Flags::default()).await.unwrap();
    assert_eq!((names(&ns, "/x").await, names(&ns, "/y").await), (vec!["b".to_string()], vec!["a".to_string()]));
}

#[tokio::test]
async fn rule_9_what_is_mounted_later_shows_to_whoever_is_there_already() {
    let (root, a, b) = (Files::new(&["d/e/x"]), Files::new(&["a"]), Files::new(&["b"]));
    let ns = ns([("", "root", &root, "/")]).await;
    let (d, e) = (walk(&ns, "/d").await.unwrap(), walk(&ns, "/d/e").await.unwrap());
    ns.mount("a", "", a.root().await, "/d/e", support::flags("-b")).await.unwrap();
    ns.mount("b", "", b.root().await, "/d/missing/deep", Flags::default()).await.unwrap();
    assert_eq!(support::names_of(&d).await.unwrap(), ["e", "missing"]);
    assert_eq!(support::names_of(&e).await.unwrap(), ["a", "x"]);
    assert_eq!(support::read_of(&d, "missing/deep/b").await.unwrap(), "b");
}

#[tokio::test]
async fn rule_10_a_file_is_removed_where_it_was_found_and_a_mount_point_is_not() {
    let (a, b) = (Files::new(&["x", "both"]), Files::new(&["both", "y"]));
    let ns = ns([("-c", "a", &a, "/u"), ("-a", "b", &b, "/u"), ("", "b", &b, "/u/in/it")]).await;
    let u = walk(&ns, "/u").await.unwrap();
    u.remove(support::name("both"), false).await.unwrap();
    assert!(!a.has("both") && b.has("both"));
    u.remove(support::name("y"), false).await.unwrap();
    assert!(!b.has("y"));
    assert_eq!(u.remove(support::name("in"), true).await, Err(Errno::EBUSY));
    let moved = u.rename(support::name("in"), &u, support::name("out"), 0).await;
    assert_eq!(moved, Err(Errno::EBUSY));
    assert_eq!(u.rename(support::name("x"), &u, support::name("in"), 0).await, Err(Errno::EBUSY));
}

#[tokio::test]
async fn rule_10_attributes_of_a_union_are_those_of_its_first_member() {
    let (a, b) = (Files::new(&["a"]), Files::new(&["b"]));
    let ns = ns([("", "a", &a, "/a"), ("", "b", &b, "/b"), ("-a", "b", &b, "/a")]).await;
    let attr = walk(&ns, "/a").await.unwrap().attr().await.unwrap();
    assert_eq!(attr.mtime, a.root().await.attr().await.unwrap().mtime);
    assert_eq!((attr.nlink, attr.qid.kind), (1, FileKind::Dir), "the number of links tells nothing");
}

#[tokio::test]
async fn a_file_moves_within_one_tree_and_never_between_two() {
    let (a, b) = (Files::new(&["d/x", "y"]), Files::new(&["z"]));
    let ns = ns([("-c", "a", &a, "/"), ("-c", "b", &b, "/b"), ("-a", "a", &a, "/b")]).await;
    let (root, d, b_dir) = (walk(&ns, "/").await, walk(&ns, "/d").await, walk(&ns, "/b").await);
    let (root, d, b_dir) = (root.unwrap(), d.unwrap(), b_dir.unwrap());
    d.rename(support::name("x"), &root, support::name("x2"), 0).await.unwrap();
    assert!(a.has("x2") && !a.has("d/x"));
    root.rename(support::name("x2"), &d, support::name("x"), 0).await.unwrap();
    let to_b = d.rename(support::name("x"), &b_dir, support::name("x"), 0).await;
    assert_eq!(to_b, Err(Errno::EACCES), "that tree is in the union, without -c");
    let over = d.rename(support::name("x"), &b_dir, support::name("z"), 0).await;
    assert_eq!(over, Err(Errno::EXDEV), "what it would replace is another tree's");
    b_dir.rename(support::name("y"), &b_dir, support::name("y2"), 0).await.unwrap();
    assert!(a.has("y2"), "within the union's directory a name may change where it is");
    let y = walk(&ns, "/y2").await.unwrap();
    d.link(&y, support::name("linked")).await.unwrap();
    assert!(a.has("d/linked"));
    let z = walk(&ns, "/b/z").await.unwrap();
    assert_eq!(d.link(&z, support::name("z")).await, Err(Errno::EXDEV));
    assert_eq!(b_dir.link(&z, support::name("y2")).await, Err(Errno::EEXIST));
}

#[tokio::test]
async fn a_mount_point_need_not_exist_beneath() {
    let (root, a) = (Files::new(&["usr/f"]), Files::new(&["x"]));
    let ns = ns([("-c", "root", &root, "/"), ("", "a", &a, "/mnt/deep/er"), ("", "a", &a, "/usr/made/up")]).await;
    assert_eq!(names(&ns, "/").await, ["mnt", "usr"]);
    assert_eq!(names(&ns, "/mnt").await, ["deep"]);
    assert_eq!(names(&ns, "/usr").await, ["made", "f"]);
    let mnt = walk(&ns, "/mnt").await.unwrap();
    let attr: Attr = mnt.attr().await.unwrap();
    assert_eq!((attr.mode & 0o7777, attr.qid), (0o555, mnt.qid()));
    assert_eq!(create(&ns, "/mnt", "new").await, Err(Errno::EROFS));
    assert_eq!(read(&ns, "/mnt/deep/er/x").await.unwrap(), "x");
    ns.unmount(None, "/mnt/deep/er").await.unwrap();
    assert_eq!(refused(&ns, "/mnt").await, Errno::ENOENT, "nothing is left of the way");
}

#[tokio::test]
async fn the_way_through_a_mount_point_asks_nobody_about_what_it_hides() {
    let a = Files::new(&["d/x"]);
    let ns = Namespace::new();
    ns.mount("dead", "", Dead::node(), "/", Flags::default()).await.unwrap();
    ns.mount("a", "", a.root().await, "/n/a", Flags::default()).await.unwrap();
    assert_eq!(read(&ns, "/n/a/d/x").await.unwrap(), "d/x", "a dead root takes no mount with it");
    let asked = Asked::new(a.root().await);
    ns.mount("asked", "", asked.root(), "/asked", Flags::default()).await.unwrap();
    ns.mount("a", "", a.root().await, "/asked", Flags::default()).await.unwrap();
    let before = asked.count();
    assert_eq!(read(&ns, "/asked/d/x").await.unwrap(), "d/x");
    assert_eq!(asked.count(), before);
}

#[tokio::test]
async fn beyond_the_table_a_path_is_one_request() {
    let files = Files::new(&["a/b/c/d"]);
    let asked = Asked::new(files.root().await);
    let ns = Namespace::new();
    ns.mount("asked", "", asked.root(), "/n/x", Flags::default()).await.unwrap();
    let root = walk(&ns, "/").await.unwrap();
    let before = asked.count();
    let names = p9::Name::split(b"n/x/a/b/c/d").unwrap();
    let opened = root.open_at(&names, How::READ, p9::Want::ATTR).await.unwrap();
    assert_eq!(opened.handle.read(0, 100).await.unwrap(), &b"a/b/c/d"[..]);
    assert_eq!(asked.count() - before, 1);
}

#[tokio::test]
async fn what_is_mounted_below_comes_along_with_a_bind() {
    let (a, b) = (Files::new(&["d/x"]), Files::new(&["y"]));
    let ns = ns([("", "a", &a, "/a"), ("-c", "b", &b, "/a/d/in")]).await;
    ns.bind("/a", "/copy", Flags::default()).await.unwrap();
    ns.unmount(None, "/a/d/in").await.unwrap();
    assert_eq!(read(&ns, "/copy/d/in/y").await.unwrap(), "y");
    assert_eq!(names(&ns, "/copy/d").await, ["in", "x"]);
    let (d, inside) = (walk(&ns, "/copy/d").await.unwrap(), walk(&ns, "/copy/d/in").await.unwrap());
    d.rename(support::name("x"), &d, support::name("x2"), 0).await.unwrap();
    assert_eq!(d.rename(support::name("x2"), &inside, support::name("x"), 0).await, Err(Errno::EXDEV));
    let (there, here) = (walk(&ns, "/a/d/x2").await.unwrap(), walk(&ns, "/copy/d/x2").await.unwrap());
    assert_eq!(there.qid(), here.qid(), "it is the same file at both places");
}

#[tokio::test]
async fn a_file_is_the_same_at_all_its_places_and_no_file_of_another_tree() {
    let ns = Namespace::new();
    for (server, old) in [("a", "/1"), ("a", "/2"), ("b", "/3")] {
        ns.mount(server, "", Numbered::root(1), old, Flags::default()).await.unwrap();
    }
    ns.bind("/1", "/4", Flags::default()).await.unwrap();
    let mut qids: Vec<Qid> = Vec::new();
    for path in ["/1/x", "/2/x", "/4/x", "/3/x"] {
        let node = walk(&ns, path).await.unwrap();
        assert_eq!(node.attr().await.unwrap().qid, node.qid());
        qids.push(node.qid());
    }
    assert!(qids[0] == qids[1] && qids[0] == qids[2] && qids[0] != qids[3]);
    assert_ne!(qids[0].path, 2, "a tree's own number is not shown");
}

#[tokio::test]
async fn a_listing_goes_on_from_any_cookie_whatever_is_mounted_meanwhile() {
    let ns = Namespace::new();
    for (server, old, how) in [("a", "/u", ""), ("b", "/u", "-a"), ("c", "/u/m", "")] {
        ns.mount(server, "", Numbered::root(1), old, support::flags(how)).await.unwrap();
    }
    ns.bind("/u/m/x", "/u/y", Flags::default()).await.unwrap();
    let Handle::Dir(dir) = walk(&ns, "/u").await.unwrap().open(How::READ).await.unwrap() else {
        panic!("no directory")
    };
    let names = |entries: &[(String, u64)]| entries.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let all = support::entries(&*dir, 0, usize::MAX).await.unwrap();
    assert_eq!(names(&all), ["m", "y", "x", "z", "x", "z"]);
    ns.unmount(None, "/u").await.unwrap();
    for count in [1, 2, usize::MAX] {
        for (at, (_, cookie)) in all.iter().enumerate() {
            let rest = support::entries(&*dir, *cookie, count).await.unwrap();
            assert_eq!(rest, all[at + 1..].iter().take(count).cloned().collect::<Vec<_>>(), "after entry {at}");
        }
    }
    assert_eq!(support::entries(&*dir, 1 << 60, 1).await, Err(Errno::EINVAL));
}

#[tokio::test]
async fn nothing_that_can_be_listed_is_an_error_and_not_an_empty_directory() {
    let ns = Namespace::new();
    ns.mount("dead", "", Dead::node(), "/d", Flags::default()).await.unwrap();
    ns.mount("dead", "2", Dead::node(), "/d", support::flags("-a")).await.unwrap();
    let dead = walk(&ns, "/d").await.unwrap();
    assert_eq!(support::names_of(&dead).await, Err(Errno::EHOSTUNREACH));
}

#[tokio::test]
async fn a_new_file_is_not_made_where_an_unreachable_member_may_hide_it() {
    let a = Files::new(&[]);
    let ns = ns([("-c", "a", &a, "/u")]).await;
    ns.mount("dead", "", Dead::node(), "/u", support::flags("-a")).await.unwrap();
    create(&ns, "/u", "new").await.unwrap();
    ns.mount("dead", "", Dead::node(), "/u", support::flags("-b")).await.unwrap();
    assert_eq!(create(&ns, "/u", "new2").await, Err(Errno::EHOSTUNREACH));
}

#[tokio::test]
async fn making_what_is_mounted_opens_it_or_says_that_it_exists() {
    let a = Files::new(&["f", "d/x"]);
    let ns = ns([("-c", "a", &a, "/"), ("", "a", &a, "/a")]).await;
    ns.bind("/a/f", "/new", Flags::default()).await.unwrap();
    let root = walk(&ns, "/").await.unwrap();
    let new = |what| p9::New { what, mode: 0o644, owner: None };
    let made = root.create(support::name("new"), new(What::File(How::READ))).await.unwrap();
    assert_eq!(made.handle.unwrap().read(0, 9).await.unwrap(), &b"f"[..]);
    let excl = What::File(How { excl: true, ..How::WRITE });
    for what in [excl, What::Dir, What::Link(b"x")] {
        assert_eq!(root.create(support::name("new"), new(what)).await.err(), Some(Errno::EEXIST));
    }
}

#[tokio::test]
async fn paths_are_absolute_and_bounded() {
    let a = Files::new(&["x"]);
    let ns = Namespace::new();
    let put = async |old: &str| ns.mount("a", "", a.root().await, old, Flags::default()).await;
    let path = |path: &str, errno| Err(Error::Path { path: path.into(), errno });
    assert_eq!(put("relative").await, path("relative", Errno::EINVAL));
    let deep = "/x".repeat(200);
    assert_eq!(put(&deep).await, path(&deep, Errno::ENAMETOOLONG));
    assert_eq!(ns.bind("/nowhere", "/x", Flags::default()).await, path("/nowhere", Errno::ENOENT));
    put("/a/../b").await.unwrap();
    assert_eq!(ns.to_text(), "mount a /b\n");
}

#[tokio::test]
async fn directories_of_a_merging_union_are_one_however_deep() {
    let (a, b, c) =
        (Files::new(&["d/e/one", "d/x", "f"]), Files::new(&["d/e/two", "d/x", "f/not", "g/h"]), Files::new(&["d/no"]));
    let ns = ns([("", "b", &b, "/u"), ("-a", "c", &c, "/u"), ("", "b", &b, "/v")]).await;
    ns.mount("a", "", a.root().await, "/u", support::flags("-bcm")).await.unwrap();
    assert_eq!(read(&ns, "/u/d/e/two").await, Err(Errno::ENOENT), "what was there did not say so, and does not merge");
    ns.unmount(None, "/u").await.unwrap();
    for (server, files, flags) in [("a", &a, "-cm"), ("b", &b, "-am"), ("c", &c, "-a")] {
        ns.mount(server, "", files.root().await, "/u", support::flags(flags)).await.unwrap();
    }
    let sorted = async |path: &str| {
        let mut names = names(&ns, path).await;
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(sorted("/u").await, "d d f g", "that of c is another");
    assert_eq!((sorted("/u/d").await.as_str(), sorted("/u/d/e").await.as_str()), ("e x", "one two"));
    assert_eq!(read(&ns, "/u/d/e/one").await.unwrap(), "d/e/one");
    assert_eq!(
        (read(&ns, "/u/d/e/two").await.unwrap(), read(&ns, "/u/g/h").await.unwrap()),
        ("d/e/two".into(), "g/h".into())
    );
    assert_eq!(read(&ns, "/u/f").await.unwrap(), "f", "a file hides a directory");
    assert_eq!(refused(&ns, "/u/f/not").await, Errno::ENOTDIR);
    assert_eq!((refused(&ns, "/u/d/no").await, refused(&ns, "/u/d/e/no").await), (Errno::ENOENT, Errno::ENOENT));
    create(&ns, "/u/d/e", "new").await.unwrap();
    assert!(a.has("d/e/new") && !b.has("d/e/new"));
    write(&ns, "/u/d/e", "two", "changed").await.unwrap();
    assert_eq!(b.text("d/e/two"), "changed", "what is there is changed where it is");
    assert_eq!(
        walk(&ns, "/u/g").await.unwrap().attr().await.unwrap().mode & 0o777,
        0o755,
        "its attributes are those of b"
    );
    create(&ns, "/u/g", "new").await.unwrap();
    assert!(a.has("g/new") && !b.has("g/new"), "the directory is made in the member that takes new files");
    assert_eq!((sorted("/u/g").await.as_str(), read(&ns, "/u/g/h").await.unwrap()), ("h new", "g/h".into()));
    let d = walk(&ns, "/u/d").await.unwrap();
    d.remove(support::name("x"), false).await.unwrap();
    assert_eq!((a.has("d/x"), b.has("d/x"), read(&ns, "/u/d/x").await.unwrap()), (false, true, "d/x".into()));
    // Something mounted within, and a bind of it, see the same.
    ns.bind("/v/g", "/u/d/e/in", Flags::default()).await.unwrap();
    assert_eq!(
        (sorted("/u/d/e").await.as_str(), read(&ns, "/u/d/e/in/h").await.unwrap()),
        ("in new one two", "g/h".into())
    );
    ns.bind("/u/d", "/w", support::flags("-m")).await.unwrap();
    assert_eq!(sorted("/w/e").await, "in new one two");
}

#[tokio::test]
async fn a_hundred_thousand_binds_in_one_table_work_and_it_is_bounded() {
    let ns = Namespace::new();
    ns.mount("t", "", Numbered::root(1), "/a", Flags::default()).await.unwrap();
    for i in 0..100_000 {
        ns.bind("/a", &format!("/n/{i}"), Flags::default()).await.unwrap();
    }
    assert_eq!(names(&ns, "/n").await.len(), 100_000);
    assert_eq!(read(&ns, "/n/77777/x").await.unwrap(), "x");
    for i in 0..50_000 {
        ns.unmount(None, &format!("/n/{i}")).await.unwrap();
    }
    assert_eq!((names(&ns, "/n").await.len(), ns.lines().len()), (50_000, 50_001));
    for i in 50_001..OWN_LINES {
        ns.mount("t", "", Numbered::root(1), &format!("/m/{i}"), Flags::default()).await.unwrap();
    }
    let text = ns.to_text();
    let full = ns.mount("t", "", Numbered::root(1), "/more", Flags::default()).await;
    assert_eq!(full, Err(Error::Full(OWN_LINES)));
    assert_eq!((refused(&ns, "/more").await, ns.to_text()), (Errno::ENOENT, text));
}

/// A directory that is opened, and lost before it is listed.
struct Lost;

impl Node for Lost {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::Dir, ..Qid::default() }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Errno::EHOSTUNREACH.into()
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        Reply::ok(Handle::Dir(std::sync::Arc::new(Self)))
    }
}

impl p9::Dir for Lost {
    fn list<'a>(&'a self, _: u64, _: &'a mut p9::DirSink<'a>) -> Reply<'a, ()> {
        Errno::EHOSTUNREACH.into()
    }
}

#[tokio::test]
async fn members_that_are_lost_while_they_are_listed_are_skipped_unless_all_are() {
    let ns = Namespace::new();
    for (server, flags) in [("1", ""), ("2", "-a")] {
        ns.mount(server, "", std::sync::Arc::new(Lost), "/u", support::flags(flags)).await.unwrap();
    }
    let u = walk(&ns, "/u").await.unwrap();
    assert_eq!(support::names_of(&u).await, Err(Errno::EHOSTUNREACH));
    ns.mount("t", "", Numbered::root(1), "/u", support::flags("-a")).await.unwrap();
    assert_eq!(support::names_of(&u).await.unwrap(), ["x", "y", "z"]);
}

/// A node that is asked once and answers `EINTR`, as one whose caller was interrupted does.
struct Interrupted;

impl Node for Interrupted {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::Dir, ..Qid::default() }
    }

    fn walk<'a>(&'a self, _: &'a [p9::Name<'a>], _: p9::Want) -> Reply<'a, p9::Walk> {
        Errno::EINTR.into()
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Errno::EINTR.into()
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        Errno::EINTR.into()
    }
}

#[tokio::test]
async fn an_interrupted_request_is_no_missing_file() {
    let a = Files::new(&["x"]);
    let ns = Namespace::new();
    ns.mount("i", "", std::sync::Arc::new(Interrupted), "/", Flags::default()).await.unwrap();
    ns.mount("a", "", a.root().await, "/", support::flags("-ac")).await.unwrap();
    ns.mount("a", "", a.root().await, "/mnt/a", Flags::default()).await.unwrap();
    assert_eq!(read(&ns, "/x").await, Err(Errno::EINTR));
    assert_eq!(refused(&ns, "/mnt").await, Errno::EINTR);
    assert_eq!(create(&ns, "/", "new").await, Err(Errno::EINTR));
    let root = walk(&ns, "/").await.unwrap();
    assert_eq!(support::names_of(&root).await, Err(Errno::EINTR));
}
