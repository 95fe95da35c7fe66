//! A layer that says what is asked for, with the path and the outcome, of files and of their bytes.

use std::sync::Arc;

use bytes::Bytes;
use p9::layer::{self, FileLayer, Layer, LayeredFile};
use p9::{Created, Handle, How, Name, New, NodeRef, Opened, Reply, Walk, Want, What, Who, Written};
use parking_lot::Mutex;

use super::name;
use super::ram::Ram;

#[derive(Clone)]
struct Trace {
    path: String,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    fn say<'a, T: 'a>(&'a self, what: String, reply: Reply<'a, T>) -> Reply<'a, T> {
        reply.then(move |answer| {
            let outcome = answer.as_ref().err().map_or("ok".to_string(), |errno| format!("{errno:?}"));
            self.lines.lock().push(format!("{} {what}: {outcome}", self.path));
            answer
        })
    }
}

fn path(names: &[Name<'_>]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join("/")
}

impl Layer for Trace {
    fn enter(&self, names: &[Name<'_>]) -> Self {
        Self { path: format!("{}/{}", self.path, path(names)), lines: self.lines.clone() }
    }

    fn file(&self, below: Handle) -> Handle {
        LayeredFile::over(self.clone(), below)
    }

    fn walk<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        let walk = below.walk(names, want).map(|walk| self.walked(names, walk));
        self.say(format!("walk {}", path(names)), walk)
    }

    fn open_at<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        let opened = below.open_at(names, how, want).map(|opened| self.opened(names, opened));
        self.say(format!("open {}", path(names)), opened)
    }

    fn create<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let created = below.create(name, what).map(move |created| self.created(name, created));
        self.say(format!("create {name}"), created)
    }

    fn create_leased<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let created = below.create_leased(name, what).map(move |created| self.created(name, created));
        self.say(format!("create {name}"), created)
    }

    fn remove<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        self.say(format!("remove {name}"), below.remove(name, dir))
    }
}

impl FileLayer for Trace {
    fn read<'a>(&'a self, below: &'a Handle, offset: u64, count: u32) -> Reply<'a, Bytes> {
        self.say(format!("read {count} at {offset}"), below.read(offset, count))
    }

    fn write<'a>(&'a self, below: &'a Handle, offset: u64, data: Bytes) -> Reply<'a, Written> {
        self.say(format!("write {} at {offset}", data.len()), below.write(offset, data))
    }

    fn write_and_flush<'a>(&'a self, below: &'a Handle, offset: u64, data: Bytes) -> Reply<'a, Written> {
        self.say(format!("write {} at {offset}, the last", data.len()), below.write_and_flush(offset, data))
    }

    fn close<'a>(&'a self, below: &'a Handle) -> Reply<'a, ()> {
        self.say("close".into(), below.close())
    }
}

#[tokio::test]
async fn a_trace_sees_each_request_and_its_outcome() {
    let ram = Ram::root();
    ram.dir("d").file("f", "text");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let trace = Trace { path: String::new(), lines: lines.clone() };
    let root = layer::tree(Arc::new(ram), trace).attach(&Who::owner(), b"").await.unwrap();
    let opened = root.open_at(&[name("d"), name("f")], How::RDWR, Want::default()).await.unwrap();
    assert_eq!(opened.handle.read(0, 100).await.unwrap(), "text");
    opened.handle.write(4, "s".into()).await.unwrap();
    opened.handle.close().await.unwrap();
    let dir = root.walk(&[name("d")], Want::default()).await.unwrap().reached().unwrap().node;
    let new = New { what: What::Dir, mode: 0o755, owner: None };
    dir.create(name("f"), new).await.err().unwrap();
    dir.remove(name("f"), false).await.unwrap();
    assert_eq!(
        *lines.lock(),
        [
            " open d/f: ok",
            "/d/f read 100 at 0: ok",
            "/d/f write 1 at 4: ok",
            "/d/f close: ok",
            " walk d: ok",
            "/d create f: EEXIST",
            "/d remove f: ok",
        ]
    );
}
