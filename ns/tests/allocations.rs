//! What resolving a path and listing a union cost the allocator, counted: the one no more in a namespace of a thousand
//! entries than in one of one, the other no more than one directory of as many names.
//!
//! A test binary of its own, because the allocator is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Instant;

use ns::{Flags, Namespace};
use p9::{Entry, Handle, How, Name, NameBuf, NodeRef, Tree, Want, Who, synth};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(at, layout) }
    }
}

/// `a/b/c/f`.
fn tree() -> NodeRef {
    let f = synth::file(|| Ok("f".into()));
    synth::dir([("a", synth::dir([("b", synth::dir([("c", synth::dir([("f", f)]))]))]))])
}

/// A namespace of the tree at `/` and at `/m/500`, and of so many more.
async fn namespace(more: usize) -> Namespace {
    let ns = Namespace::new();
    let places = ["/".to_string(), "/m/500".into()].into_iter();
    for old in places.chain((1000..1000 + more).map(|i| format!("/{}/{i}", if i % 2 == 0 { "m" } else { "a/b" }))) {
        ns.mount("t", "", tree(), &old, Flags::default()).await.unwrap();
    }
    ns
}

/// Walks to `path` in one step and in several. Gives how often that allocates, and the nanoseconds of it.
async fn walked(ns: &Namespace, path: &str) -> (u64, u64) {
    let root = ns.attach(&Who::owner(), b"").await.unwrap();
    let names = Name::split(path.as_bytes()).unwrap();
    let (before, began) = (COUNT.get(), Instant::now());
    const TIMES: u64 = 1000;
    for _ in 0..TIMES {
        root.walk(&names, Want::default()).await.unwrap().reached().unwrap();
        let mut at = root.clone();
        for name in &names {
            at = at.walk(&[*name], Want::default()).await.unwrap().reached().unwrap().node;
        }
    }
    ((COUNT.get() - before) / TIMES, began.elapsed().as_nanos() as u64 / TIMES)
}

#[tokio::test]
async fn a_path_costs_no_more_among_a_thousand_entries() {
    let (few, many) = (namespace(2).await, namespace(1000).await);
    for path in ["/a/b/c/f", "/m/500/a/b/c/f", "/a/b/1001/a/b/c/f"] {
        let (few, many) = (walked(&few, path).await, walked(&many, path).await);
        println!("{path}: {} ns in a namespace of 4, {} ns in one of 1002", few.1, many.1);
        assert_eq!(few.0, many.0, "{path}");
    }
    // Where nothing is mounted on the way, it costs what it does where nothing else is mounted.
    let alone = Namespace::new();
    alone.mount("t", "", tree(), "/", Flags::default()).await.unwrap();
    let beside = Namespace::new();
    for old in std::iter::once("/".to_string()).chain((0..1000).map(|i| format!("/m/{i}"))) {
        beside.mount("t", "", tree(), &old, Flags::default()).await.unwrap();
    }
    let (alone, beside) = (walked(&alone, "/a/b/c/f").await, walked(&beside, "/a/b/c/f").await);
    println!("/a/b/c/f: {} ns in a namespace of 1, {} ns in one of 1001", alone.1, beside.1);
    assert_eq!(alone.0, beside.0);
}

/// A directory of the names from `first` on, `count` of them.
struct Numbered(u64, u64);

impl synth::Listing for Numbered {
    fn lookup<'a>(&'a self, _name: Name<'a>) -> p9::Reply<'a, Option<NodeRef>> {
        p9::Reply::ok(None)
    }

    fn list(&self) -> p9::Reply<'_, Vec<(NameBuf, NodeRef)>> {
        let file = synth::file(|| Ok("f".into()));
        let named = |i: u64| (NameBuf::new(format!("{i:06}")).unwrap(), file.clone());
        p9::Reply::ok((self.0..self.0 + self.1).map(named).collect())
    }
}

fn numbered(first: u64, count: u64) -> NodeRef {
    synth::directory(std::sync::Arc::new(Numbered(first, count)))
}

/// Lists `/u`. Gives how many names there are, how often that allocates, and the microseconds of it.
async fn listed(ns: &Namespace) -> (u64, u64, u64) {
    let root = ns.attach(&Who::owner(), b"").await.unwrap();
    let at = root.walk(&[Name::new(b"u").unwrap()], Want::default()).await.unwrap().reached().unwrap().node;
    let Handle::Dir(dir) = at.open(How::READ).await.unwrap() else { panic!("no directory") };
    let (before, began) = (COUNT.get(), Instant::now());
    let mut names = 0;
    let mut each = |_: Entry<'_>| {
        names += 1;
        ControlFlow::Continue(())
    };
    dir.list(0, &mut each).await.unwrap();
    (names, COUNT.get() - before, began.elapsed().as_micros() as u64)
}

#[tokio::test]
async fn a_union_of_ten_directories_is_listed_as_one_of_as_many_names() {
    const EACH: u64 = 10_000;
    let (one, ten) = (Namespace::new(), Namespace::new());
    one.mount("t", "", numbered(0, 10 * EACH), "/u", Flags::default()).await.unwrap();
    for i in 0..10 {
        let flags = Flags { after: i > 0, ..Flags::default() };
        ten.mount(&format!("t{i}"), "", numbered(i * EACH, EACH), "/u", flags).await.unwrap();
    }
    let (one, ten) = (listed(&one).await, listed(&ten).await);
    println!("{} names: {} us in one directory, {} us in a union of ten", one.0, one.2, ten.2);
    assert_eq!((one.0, ten.0), (10 * EACH, 10 * EACH));
    assert!(ten.1 <= one.1 + 1000, "{} and {} allocations", one.1, ten.1);
}
