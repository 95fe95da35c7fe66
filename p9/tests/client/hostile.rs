//! Servers that break the protocol: their client loses its connection, or one answer, and nothing else.

use bytes::Bytes;
use p9::client::{Client, Error, Options};
use p9::wire::{Data, Dirent, NO_TAG, Qids, R, Str};
use p9::{Errno, Handle, How, Name, Want};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake::{FILE, Fake, PATIENCE, ROOT};

/// What a read ends with when the server answers it with `answer`, and whether the connection lives on.
async fn read_answered(count: u32, answer: impl FnOnce(u16) -> Vec<u8>) -> (Result<Bytes, Errno>, bool) {
    let (handle, mut fake) = Fake::opened().await;
    let play = async {
        let (tag, _) = fake.hears("Read").await;
        fake.sends(&answer(tag)).await;
    };
    let (read, ()) = tokio::join!(handle.read(0, count), play);
    let again = async {
        if let Some((tag, _)) = fake.hear().await {
            fake.says(tag, R::Read { data: Data(b"more") }).await;
        }
    };
    let (more, ()) = tokio::join!(handle.read(0, 4), again);
    (read, more.is_ok())
}

fn encoded(tag: u16, message: R<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode(tag, &mut frame);
    frame
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_nobody_waits_for_ends_the_connection() {
    let answer = |tag: u16| encoded(tag + 1000, R::Read { data: Data(b"x") });
    assert_eq!(read_answered(4, answer).await, (Err(Errno::EHOSTUNREACH), false));
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_too_short_or_too_long_ends_the_connection() {
    let short = |_| vec![6, 0, 0, 0, 117, 0];
    assert_eq!(read_answered(4, short).await, (Err(Errno::EHOSTUNREACH), false));
    let long = |_| vec![255, 255, 255, 255, 117, 0, 0];
    assert_eq!(read_answered(4, long).await, (Err(Errno::EHOSTUNREACH), false));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_another_question_is_an_error_of_that_call_alone() {
    assert_eq!(read_answered(4, |tag| encoded(tag, R::Clunk {})).await, (Err(Errno::EPROTO), true));
    // A count that goes beyond its frame.
    let beyond = |tag: u16| {
        let mut frame = encoded(tag, R::Read { data: Data(b"four") });
        frame[7] = 200;
        frame
    };
    assert_eq!(read_answered(4, beyond).await, (Err(Errno::EPROTO), true));
    // A message that is none.
    let unknown = |tag: u16| [&[7, 0, 0, 0, 250][..], &tag.to_le_bytes()].concat();
    assert_eq!(read_answered(4, unknown).await, (Err(Errno::EPROTO), true));
}

#[tokio::test(start_paused = true)]
async fn more_data_than_was_asked_for_is_refused() {
    let answer = |tag: u16| encoded(tag, R::Read { data: Data(b"12345") });
    assert_eq!(read_answered(4, answer).await, (Err(Errno::EPROTO), true));
}

#[tokio::test(start_paused = true)]
async fn more_data_than_a_piece_of_a_large_read_is_refused() {
    let (handle, mut fake) = Fake::opened().await;
    let play = async {
        let (first, _) = fake.hears("Read").await;
        let (second, text) = fake.hears("Read").await;
        assert!(text.contains("offset: 8192") && text.contains("count: 8 "), "{text}");
        fake.says(first, R::Read { data: Data(&[1; 8192]) }).await;
        fake.says(second, R::Read { data: Data(&[1; 9]) }).await;
    };
    let (read, ()) = tokio::join!(handle.read(0, 8200), play);
    assert_eq!(read, Err(Errno::EPROTO));
}

#[tokio::test(start_paused = true)]
async fn more_written_than_was_sent_is_refused() {
    let (handle, mut fake) = Fake::opened().await;
    let play = async {
        let (tag, _) = fake.hears("Write").await;
        fake.says(tag, R::Write { count: 5 }).await;
    };
    let (written, ()) = tokio::join!(handle.write(0, Bytes::from_static(b"1234")), play);
    assert_eq!(written, Err(Errno::EPROTO));
}

#[tokio::test(start_paused = true)]
async fn a_walk_that_goes_further_than_it_was_asked_to_is_refused() {
    for ordered in [true, false] {
        let (root, mut fake) = Fake::attached(ordered).await;
        let qids = Fake::qids(&[ROOT, FILE]);
        let play = async {
            let (tag, _) = fake.hears("Walk").await;
            fake.says(tag, R::Walk { qids: Qids::of(&qids) }).await;
        };
        let names = [Name::new(b"a").unwrap()];
        let (walk, ()) = tokio::join!(root.walk(&names, Want::default()), play);
        assert_eq!(walk.err(), Some(Errno::EPROTO), "ordered: {ordered}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_leads_back_to_where_it_was_read_from_is_refused() {
    let (root, mut fake) = Fake::attached(true).await;
    let play = async {
        let (walk, _) = fake.hears("Walk").await;
        let (open, _) = fake.hears("Lopen").await;
        fake.says(walk, R::Walk { qids: Qids::of(&[]) }).await;
        fake.says(open, R::Lopen { qid: ROOT, iounit: 0 }).await;
        for offset in [5, 5] {
            let mut data = Vec::new();
            Dirent { qid: FILE, offset, kind: 8, name: Str(b"f") }.write(&mut data);
            R::write_attr(None, &mut data);
            let (tag, _) = fake.hears("Readdirplus").await;
            fake.says(tag, R::Readdirplus { data: Data(&data) }).await;
        }
    };
    let list = async {
        let Handle::Dir(dir) = root.open(How::READ).await.unwrap() else { panic!("no directory") };
        let mut count = 0;
        let mut each = |_: p9::Entry<'_>| {
            count += 1;
            std::ops::ControlFlow::Continue(())
        };
        let end = dir.list(0, &mut each).await;
        (end, count)
    };
    let (listed, ()) = tokio::join!(list, play);
    assert_eq!(listed, (Err(Errno::EPROTO), 1));
}

/// What comes of a connection whose server answers Tversion with `answer`.
async fn version_answered(answer: R<'_>) -> Result<Client, Error> {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let play = async {
        let mut frame = [0; 64];
        let _ = far.read(&mut frame).await;
        far.write_all(&encoded(NO_TAG, answer)).await.unwrap();
    };
    tokio::join!(Client::connect(near, Options::default()), play).0
}

#[tokio::test(start_paused = true)]
async fn a_version_or_msize_that_was_not_offered_is_refused_with_a_reason() {
    let reason = async |answer| version_answered(answer).await.err().map(|err| err.to_string()).unwrap();
    let said = reason(R::Version { msize: 8192, version: Str(b"9P2000.u") }).await;
    assert_eq!(said, "the server speaks \"9P2000.u\", not 9P2000");
    let said = reason(R::Version { msize: 1 << 30, version: Str(b"9P2000.L") }).await;
    assert!(said.contains("an msize of 1073741824"), "{said}");
    let said = reason(R::Version { msize: 24, version: Str(b"9P2000.L") }).await;
    assert!(said.contains("an msize of 24"), "{said}");
    assert!(reason(R::Clunk {}).await.contains("Clunk"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_our_version_with_an_error_is_offered_the_plain_one() {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let play = async {
        let mut frame = [0; 64];
        let _ = far.read(&mut frame).await;
        far.write_all(&encoded(NO_TAG, R::Lerror { ecode: 5 })).await.unwrap();
        let heard = far.read(&mut frame).await.unwrap();
        assert!(frame[..heard].ends_with(b"9P2000.L"));
        far.write_all(&encoded(NO_TAG, R::Version { msize: 8192, version: Str(b"9P2000.L") })).await.unwrap();
    };
    let client = tokio::join!(Client::connect(near, Options::default()), play).0.unwrap();
    assert_eq!(client.msize(), 8192);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up_at_connecting() {
    let (near, _far) = tokio::io::duplex(1 << 16);
    let connected = tokio::time::timeout(PATIENCE, Client::connect(near, Options::default())).await.unwrap();
    assert!(matches!(connected, Err(Error::Frame(_))));
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_server_goes_is_told() {
    let (client, fake) = Fake::connect(true, 1 << 16).await;
    let attach = async {
        let mut fake = fake;
        fake.hears("Attach").await;
    };
    let who = p9::Who::owner();
    let (root, (), ()) = tokio::join!(p9::Tree::attach(&client, &who, b""), attach, client.closed());
    assert_eq!(root.err(), Some(Errno::EHOSTUNREACH));
    assert!(client.is_closed());
    assert_eq!(p9::Tree::attach(&client, &who, b"").await.err(), Some(Errno::EHOSTUNREACH));
}

#[tokio::test(start_paused = true)]
async fn offsets_at_the_end_of_all_numbers_are_only_errors() {
    let (handle, _fake) = Fake::opened().await;
    assert_eq!(handle.read(u64::MAX - 10, 1 << 20).await, Err(Errno::EINVAL));
}
