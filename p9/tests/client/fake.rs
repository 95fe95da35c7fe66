//! A server played by the test: it hears what the client says, message by message, and answers what the test says.

use std::time::Duration;

use p9::client::{Client, Options};
use p9::wire::{NO_TAG, Qids, R, Str, T, VERSION_L, VERSION_SLASHN, VERSION_UNKNOWN};
use p9::{FileKind, Handle, How, NodeRef, Qid, Tree, Who};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The qid that every file of the fake has: one with contents that stay.
pub(crate) const FILE: Qid = Qid { kind: FileKind::File, version: 1, path: 7 };
/// The root's.
pub(crate) const ROOT: Qid = Qid { kind: FileKind::Dir, version: 1, path: 1 };

/// The server's end of a stream.
pub(crate) struct Fake {
    stream: DuplexStream,
    /// Kept, so that it is not clunked.
    _root: Option<NodeRef>,
}

/// A message as the test sees it: its tag, and its text.
pub(crate) type Heard = (u16, String);

impl Fake {
    /// A client, and the server that it is connected to, which speaks our dialect or plain 9P2000.L.
    pub(crate) async fn connect(ordered: bool, stream: usize) -> (Client, Self) {
        let (near, far) = tokio::io::duplex(stream);
        let mut fake = Self { stream: far, _root: None };
        let options = Options { msize: 8192 + 24, ..Options::default() };
        let agree = async {
            assert!(fake.hears("Version").await.1.contains("9P2000.L.slashn"));
            if !ordered {
                fake.says(NO_TAG, R::Version { msize: 8192 + 24, version: Str(VERSION_UNKNOWN) }).await;
                fake.hears("Version").await;
            }
            let version = Str(if ordered { VERSION_SLASHN } else { VERSION_L });
            fake.says(NO_TAG, R::Version { msize: 8192 + 24, version }).await;
        };
        let (client, ()) = tokio::join!(Client::connect(near, options), agree);
        (client.unwrap(), fake)
    }

    /// The server's end of `stream`, on which nothing has been agreed on yet.
    pub(crate) fn of(stream: DuplexStream) -> Self {
        Self { stream, _root: None }
    }

    /// A client that is connected as [`Fake::connect`] does, and the root.
    pub(crate) async fn attached(ordered: bool) -> (NodeRef, Self) {
        let (client, mut fake) = Self::connect(ordered, 1 << 16).await;
        let attach = async {
            let (tag, _) = fake.hears("Attach").await;
            fake.says(tag, R::Attach { qid: ROOT }).await;
        };
        let who = Who::owner();
        let (root, ()) = tokio::join!(client.attach(&who, b""), attach);
        (root.unwrap(), fake)
    }

    /// The same, and an open file.
    pub(crate) async fn opened() -> (Handle, Self) {
        let (root, mut fake) = Self::attached(true).await;
        let answer = async {
            let (walk, _) = fake.hears("Walk").await;
            let (open, _) = fake.hears("Lopen").await;
            fake.says(walk, R::Walk { qids: Qids::of(&[]) }).await;
            fake.says(open, R::Lopen { qid: FILE, iounit: 0 }).await;
        };
        let (handle, ()) = tokio::join!(root.open(How::RDWR), answer);
        (handle.unwrap(), Self { _root: Some(root), ..fake })
    }

    /// The next message, which must be of the sort `what`.
    pub(crate) async fn hears(&mut self, what: &str) -> Heard {
        let heard = tokio::time::timeout(PATIENCE, self.hear()).await;
        let (tag, text) = heard.unwrap_or_else(|_| panic!("nothing, instead of {what}")).expect("a message");
        assert!(text.starts_with(what), "expected {what}, heard {text}");
        (tag, text)
    }

    /// The next message, or `None` at the end of the stream.
    pub(crate) async fn hear(&mut self) -> Option<Heard> {
        let mut size = [0; 4];
        self.stream.read_exact(&mut size).await.ok()?;
        let mut frame = vec![0; u32::from_le_bytes(size) as usize - 4];
        self.stream.read_exact(&mut frame).await.ok()?;
        let message = T::decode(frame[0], &frame[3..]).unwrap().expect("a message of the table");
        Some((u16::from_le_bytes([frame[1], frame[2]]), format!("{message:?}")))
    }

    /// Makes sure that nothing is said for now. The clock is paused: time passes once nothing else can happen.
    pub(crate) async fn hears_nothing(&mut self) {
        if let Ok(heard) = tokio::time::timeout(Duration::from_secs(5), self.hear()).await {
            panic!("expected nothing, heard {heard:?}");
        }
    }

    /// Answers `tag`.
    pub(crate) async fn says(&mut self, tag: u16, message: R<'_>) {
        let mut frame = Vec::new();
        message.encode(tag, &mut frame);
        self.sends(&frame).await;
    }

    /// Sends bytes, whatever they are.
    pub(crate) async fn sends(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The qids of a walk, encoded.
    pub(crate) fn qids(qids: &[Qid]) -> Vec<u8> {
        Qids::encode(qids)
    }
}
