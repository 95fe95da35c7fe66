//! Node ids, and files that are walked to again.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use p9::{Attr, Created, Errno, Handle, How, Name, New, Node, Qid, Reply, Walk, Want, synth};

use super::*;

#[test]
fn hard_links_are_one_file() {
    let (_folder, root) = disk();
    let shown = Shown::with(root, Options { ttl: Duration::ZERO, ..Options::default() });
    fs::write(shown.path("a"), b"x").unwrap();
    fs::create_dir(shown.path("d")).unwrap();
    fs::hard_link(shown.path("a"), shown.path("d/b")).unwrap();
    let (a, b) = (shown.path("a").metadata().unwrap(), shown.path("d/b").metadata().unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::remove_file(shown.path("a")).unwrap();
    fs::write(shown.path("d/b"), b"still here").unwrap();
    assert_eq!(shown.path("d/b").metadata().unwrap().nlink(), 1);
}

#[test]
fn what_is_changed_by_a_name_is_what_has_it_now() {
    let folder = tempfile::tempdir().unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (mine, other) = (Shown::far(tree.clone()), Shown::far(tree));
    for n in 0..30 {
        let name = format!("f{n}");
        fs::write(mine.path(&name), "old").unwrap();
        assert_eq!(fs::read_to_string(other.path(&name)).unwrap(), "old");
        fs::remove_file(mine.path(&name)).unwrap();
        fs::write(mine.path(&name), "new").unwrap();
        fs::set_permissions(other.path(&name), std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
        assert_eq!(folder.path().join(&name).metadata().unwrap().mode() & 0o7777, 0o751, "round {n}");
    }
    // One that is open is what it is without a name, too.
    let file = File::open(other.path("f0")).unwrap();
    fs::remove_file(mine.path("f0")).unwrap();
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_directory_in_two_places_is_two() {
    let inner = synth::dir([("f", synth::file(|| Ok("text".into())))]);
    let shown = Shown::new(synth::dir([("here", inner.clone()), ("there", inner)]));
    let id = |name: &str| shown.path(name).metadata().unwrap().ino();
    assert_ne!(id("here"), id("there"));
    assert_eq!(id("here/f"), id("there/f"));
}

#[test]
fn more_files_than_are_held_are_walked_to_again() {
    let (_folder, root) = disk();
    let shown = Shown::with(root, Options { max_inodes_held: 16, ttl: Duration::ZERO, ..Options::default() });
    let path = |n: usize| shown.path(&format!("d{}/e/f{n}", n % 7));
    for n in 0..500 {
        if n < 7 {
            fs::create_dir_all(path(n).parent().unwrap()).unwrap();
        }
        fs::write(path(n), n.to_string()).unwrap();
    }
    // They keep their numbers, too, which are those of the files.
    let numbers: Vec<_> = (0..500).map(|n| path(n).metadata().unwrap().ino()).collect();
    fs::rename(shown.path("d3"), shown.path("d7")).unwrap();
    fs::rename(shown.path("d7/e"), shown.path("e")).unwrap();
    fs::create_dir(shown.path("d3")).unwrap();
    fs::rename(shown.path("e"), shown.path("d3/e")).unwrap();
    for (n, number) in numbers.into_iter().enumerate() {
        assert_eq!(fs::read_to_string(path(n)).unwrap(), n.to_string());
        assert_eq!(path(n).metadata().unwrap().ino(), number);
    }
}

#[test]
fn a_working_directory_follows_its_renames() {
    let (_folder, root) = disk();
    let shown = Shown::with(root, Options { max_inodes_held: 16, ttl: Duration::ZERO, ..Options::default() });
    let script = "mkdir -p a/b many && cd a/b && echo one > f && mv ../../a ../../c && \
        for i in $(seq 64); do : > ../../many/$i; done && cat f && echo two > g && cat ../../c/b/g && pwd -P";
    let output = std::process::Command::new("sh").args(["-c", script]).current_dir(&*shown).output().unwrap();
    let want = format!("one\ntwo\n{}/c/b\n", shown.canonicalize().unwrap().display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), want, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_open_goes_by_the_name_whoever_moves_it() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (one, other) = (Shown::far(tree.clone()), Shown::far(tree));
    for round in 0..20 {
        let text = round.to_string();
        fs::write(other.path("new"), &text).unwrap();
        fs::rename(other.path("new"), other.path("f")).unwrap();
        for how in [File::options().read(true), File::options().read(true).write(true)] {
            let mut read = String::new();
            how.open(one.path("f")).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, text, "round {round}");
        }
        // Renamed and removed by the other: what was looked up here a moment ago is not opened.
        fs::rename(other.path("f"), other.path("g")).unwrap();
        let kind = File::options().write(true).open(one.path("f")).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::NotFound, "round {round}");
        assert_eq!(fs::read_to_string(one.path("g")).unwrap(), text);
        fs::remove_file(other.path("g")).unwrap();
        assert_eq!(File::open(one.path("g")).unwrap_err().kind(), std::io::ErrorKind::NotFound, "round {round}");
        // Made by the other: what was missing a moment ago is there.
        assert!(!one.path(&text).exists());
        fs::write(other.path(&text), &text).unwrap();
        assert!(one.path(&text).exists(), "round {round}");
    }
}

#[test]
fn a_file_that_has_no_name_any_more_is_opened_by_its_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (one, other) = (Shown::far(tree.clone()), Shown::far(tree));
    fs::write(one.path("f"), "text").unwrap();
    let open = File::options().read(true).write(true).open(one.path("f")).unwrap();
    fs::remove_file(other.path("f")).unwrap();
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
    assert_eq!(fs::read_to_string(&again).unwrap(), "text");
    fs::write(&again, "more").unwrap();
    assert_eq!(fs::read_to_string(&again).unwrap(), "more");
}

#[test]
fn a_file_replaced_behind_the_mount_is_another_file() {
    let (folder, root) = disk();
    let shown = Shown::with(root, Options { ttl: Duration::ZERO, ..Options::default() });
    fs::write(folder.path().join("a"), b"first").unwrap();
    let first = shown.path("a").metadata().unwrap().ino();
    fs::remove_file(folder.path().join("a")).unwrap();
    fs::write(folder.path().join("a"), b"second").unwrap();
    assert_eq!(fs::read_to_string(shown.path("a")).unwrap(), "second");
    assert_ne!(shown.path("a").metadata().unwrap().ino(), first);
}

/// A directory whose child answers `EHOSTUNREACH` once its server was lost, until it is walked to anew.
struct Grid {
    lost: Arc<AtomicBool>,
    dials: Arc<AtomicUsize>,
}

struct Remote {
    lost: Arc<AtomicBool>,
    inner: NodeRef,
}

impl Node for Grid {
    fn qid(&self) -> Qid {
        Qid { kind: p9::FileKind::Dir, version: 0, path: 1 << 40 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(self.qid(), 0o555))
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(async move {
            if self.lost.swap(false, Ordering::SeqCst) || self.dials.load(Ordering::SeqCst) == 0 {
                self.dials.fetch_add(1, Ordering::SeqCst);
            }
            let inner = synth::file(|| Ok("alive".into()));
            let node: NodeRef = Arc::new(Remote { lost: self.lost.clone(), inner });
            let attr = node.attr_if(want.attr).await?;
            if names.len() == 1 { Ok(Walk::one(node, attr)) } else { Err(Errno::ENOTDIR) }
        })
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        Errno::EACCES.into()
    }
}

impl Remote {
    fn check(&self) -> Result<(), Errno> {
        if self.lost.load(Ordering::SeqCst) { Err(Errno::EHOSTUNREACH) } else { Ok(()) }
    }
}

impl Node for Remote {
    fn qid(&self) -> Qid {
        Qid { kind: p9::FileKind::File, version: 0, path: 2 << 40 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.check().map(|()| Attr::synthetic(self.qid(), 0o444)).into()
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        match self.check() {
            Ok(()) => self.inner.open(how),
            Err(errno) => errno.into(),
        }
    }
}

#[test]
fn what_a_lost_server_had_is_asked_for_again() {
    let (lost, dials) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let shown = Shown::new(Arc::new(Grid { lost: lost.clone(), dials: dials.clone() }));
    assert_eq!(fs::read_to_string(shown.path("n")).unwrap(), "alive");
    // The kernel still knows the name, and the mount still holds the dead node.
    lost.store(true, Ordering::SeqCst);
    assert_eq!(fs::read_to_string(shown.path("n")).unwrap(), "alive");
    assert_eq!(dials.load(Ordering::SeqCst), 2);
}

#[test]
fn names_used_in_order_are_asked_about_together_and_once() {
    let (walks, together, shown) = counted(1000, 0);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 1000);
    // Those at the start came with the listing.
    let before = walks.load(Ordering::SeqCst);
    together.store(0, Ordering::SeqCst);
    (500..1000).for_each(|n| assert!(shown.path(&n.to_string()).exists()));
    assert!(together.load(Ordering::SeqCst) > 8, "each was asked about by itself");
    assert_eq!(walks.load(Ordering::SeqCst) - before, 500);
}

#[test]
fn files_used_in_order_are_what_they_are() {
    let (folder, root) = disk();
    let name = |n: usize| format!("f{n:03}");
    (0..200).for_each(|n| fs::write(folder.path().join(name(n)), n.to_string()).unwrap());
    let shown = Shown::with(root, Options { ttl: Duration::from_secs(600), ..Options::default() });
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 200);
    for n in 0..200 {
        assert_eq!(fs::read_to_string(shown.path(&name(n))).unwrap(), n.to_string());
        assert_eq!(shown.path(&name(n)).metadata().unwrap().len(), n.to_string().len() as u64);
    }
}

#[test]
fn what_was_asked_before_a_write_is_not_told_after_it() {
    let (folder, root) = disk();
    let name = |n: usize| format!("f{n:03}");
    (0..200).for_each(|n| fs::write(folder.path().join(name(n)), b"").unwrap());
    fs::create_dir(folder.path().join("other")).unwrap();
    let shown = Shown::with(root, Options { ttl: Duration::from_secs(600), ..Options::default() });
    for target in [120, 150, 180] {
        let link = shown.path("other").join(name(target));
        fs::hard_link(folder.path().join(name(target)), folder.path().join("other").join(name(target))).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(link).unwrap();
        assert_eq!(fs::read_dir(&*shown).unwrap().count(), 201);
        // In order, so that the file is asked about under its name here, too.
        (target - 10..target).for_each(|n| assert_eq!(shown.path(&name(n)).metadata().unwrap().len(), 0));
        std::io::Write::write_all(&mut file, b"written").unwrap();
        assert_eq!(shown.path(&name(target)).metadata().unwrap().len(), 7);
    }
}

/// A directory of `0`, `1`, ... that lists no attributes, and counts what it is asked about each.
struct Counted {
    entries: Vec<NodeRef>,
    walks: Arc<AtomicUsize>,
    /// How many questions were under way together, at most.
    together: Arc<AtomicUsize>,
    under_way: AtomicUsize,
    /// The last name of all is gone when it is asked about.
    gone: usize,
}

impl Node for Counted {
    fn qid(&self) -> Qid {
        Qid { kind: p9::FileKind::Dir, version: 0, path: 3 << 40 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(self.qid(), 0o555))
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        self.walks.fetch_add(1, Ordering::SeqCst);
        let number = std::str::from_utf8(names[0].as_bytes()).ok().and_then(|name| name.parse::<usize>().ok());
        let there = number.filter(|number| *number < self.entries.len() - self.gone);
        let Some(node) = there.map(|number| self.entries[number].clone()) else { return Errno::ENOENT.into() };
        Reply::later(async move {
            self.together.fetch_max(self.under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            let attr = node.attr_if(want.attr).await?;
            Ok(Walk::one(node, attr))
        })
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        Reply::ok(Handle::Dir(Arc::new(Names(self.entries.iter().map(|node| node.qid()).collect()))))
    }
}

struct Names(Vec<Qid>);

impl p9::Dir for Names {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut p9::DirSink<'a>) -> Reply<'a, ()> {
        for (number, qid) in self.0.iter().enumerate().skip(cookie as usize) {
            let name = number.to_string();
            let entry = p9::Entry {
                cookie: number as u64 + 1,
                qid: *qid,
                kind: 0,
                attr: None,
                name: Name::new(name.as_bytes()).unwrap(),
            };
            if each(entry).is_break() {
                break;
            }
        }
        Reply::ok(())
    }
}

fn counted(entries: usize, gone: usize) -> (Arc<AtomicUsize>, Arc<AtomicUsize>, Shown) {
    let (walks, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let entries = (0..entries).map(|_| synth::file(|| Ok("".into()))).collect();
    let options = Options { ttl: Duration::from_secs(600), ..Options::default() };
    let root = Counted { entries, walks: walks.clone(), together: together.clone(), under_way: 0.into(), gone };
    (walks, together, Shown::with(Arc::new(root), options))
}

#[test]
fn a_directory_is_listed_with_attributes_and_each_name_looked_up_once() {
    let (walks, _, shown) = counted(1000, 0);
    let list = std::process::Command::new("ls").arg("-l").arg(&*shown).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout).lines().count(), 1001);
    let asked = walks.load(Ordering::SeqCst);
    // Those that had no room were asked about twice.
    assert!((1000..1200).contains(&asked), "{asked} walks");
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 1000);
}

#[test]
fn names_that_go_while_they_are_listed_are_left_out_and_end_nothing() {
    let (.., shown) = counted(500, 450);
    // The kernel asks for attributes at the start of a listing.
    let listed: Vec<_> = fs::read_dir(&*shown).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(listed.len() >= 50, "{}", listed.len());
    let (.., shown) = counted(500, 500);
    let list = std::process::Command::new("ls").arg(&*shown).output().unwrap();
    assert!(list.status.success(), "{list:?}");
}

/// A disk where somebody exchanges what was just made for what is called `other`.
#[derive(Clone)]
struct Exchanged(Arc<PathBuf>);

impl Exchanged {
    fn exchange(&self, name: Name<'_>) {
        let [made, other] = [name.as_os_str(), "other".as_ref()].map(|name| self.0.join(name));
        let (here, how) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        rustix::fs::renameat_with(here, made, here, other, how).unwrap();
    }
}

impl p9::layer::Layer for Exchanged {
    fn create<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        Reply::later(async move {
            let created = below.create(name, what).await?;
            self.exchange(name);
            let reached = below.walk(&[name], Want::ATTR).await?.reached()?;
            Ok(self.created(name, Created { node: reached.node, attr: reached.attr, ..created }))
        })
    }

    fn link<'a>(&'a self, below: &'a NodeRef, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            below.link(&self.ours(target)?.below, name).await?;
            self.exchange(name);
            Ok(())
        })
    }
}

#[test]
fn what_another_moves_away_as_soon_as_it_is_made_is_no_error_of_the_disk() {
    let (folder, root) = disk();
    let there = |name: &str| folder.path().join(name);
    fs::write(there("file"), "text").unwrap();
    fs::write(there("other"), "another").unwrap();
    let shown = Shown::new(p9::layer::Layer::over(Exchanged(Arc::new(folder.path().to_path_buf())), root));
    let told = fs::create_dir(shown.path("made")).unwrap_err();
    assert_eq!(told.kind(), std::io::ErrorKind::NotFound, "a file is there by now: {told}");
    assert!(there("other").is_dir() && fs::read_to_string(shown.path("made")).unwrap() == "another");
    fs::hard_link(shown.path("file"), shown.path("linked")).unwrap();
    assert!(shown.path("linked").is_dir(), "what was exchanged for the link");
    assert_eq!(fs::read_to_string(shown.path("other")).unwrap(), "text");
    assert_eq!(fs::metadata(shown.path("file")).unwrap().nlink(), 2);
}
