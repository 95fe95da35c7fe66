//! Changes of exported directories, read as lines from one file.

use bytes::Bytes;
use fileserver::{Exports, events};
use p9::{Errno, Handle, How, Who};

#[tokio::test]
async fn a_script_reads_what_happens_where_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    std::fs::create_dir_all(at("src/deep")).unwrap();
    std::fs::create_dir(at("data")).unwrap();
    let export = |name: &str| format!("{name}={}", at(name).display()).parse().unwrap();
    let exports = Exports::open(vec![export("src"), export("data")], [7; 32]).unwrap();
    let file = events::file(exports.node_for(&Who::owner()));
    let open = async |how| match file.open(how).await.unwrap() {
        Handle::Stream(stream) => stream,
        _ => panic!("no stream"),
    };
    let wait_for = async |stream: &dyn p9::Stream, wanted: &[&str]| {
        let mut text = String::new();
        while !wanted.iter().all(|line| text.contains(line)) {
            text += std::str::from_utf8(&stream.read(0, 7).await.unwrap()).unwrap();
        }
        text
    };
    // Asked for by its path, nothing else is told.
    let deep = open(How::RDWR).await;
    assert_eq!(deep.write(0, Bytes::from_static(b"src/none\n")).await.err(), Some(Errno::ENOENT));
    deep.write(0, Bytes::from_static(b"/src/deep\n")).await.unwrap();
    // Nothing asked for: the top of each export, from the first read on.
    let all = open(How::READ).await;
    let reading = async { wait_for(&*all, &["create src/f\n", "create data/g\n"]).await };
    let changing = async {
        // The first read has to be there: it is, once what it watches tells of something.
        loop {
            tokio::task::yield_now().await;
            std::fs::write(at("src/f"), "").unwrap();
            std::fs::write(at("data/g"), "").unwrap();
            std::fs::remove_file(at("src/f")).unwrap();
            std::fs::remove_file(at("data/g")).unwrap();
        }
    };
    tokio::select! {
        text = reading => assert!(!text.contains("deep/"), "{text}"),
        () = changing => {}
    }
    std::fs::write(at("src/deep/h"), "").unwrap();
    let text = wait_for(&*deep, &["create src/deep/h\n"]).await;
    assert!(!text.contains("src/f") && !text.contains("data/"), "{text}");
    assert_eq!(open(How::READ).await.write(0, Bytes::from_static(b"src")).await.err(), Some(Errno::EBADF));
}
