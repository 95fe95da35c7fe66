//! Frames off a stream: size\[4\] type\[1\] tag\[2\] and the fields.
//!
//! Used by the reader of a connection, on either side. While nothing comes the buffer is small; for a large frame, and
//! those that follow one, it is as large as that, and one that was used before, so that data is read to where it stays.
//! It is never larger than the agreed msize. A frame that has begun must end in time.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::Errno;
use crate::buffers;
use crate::server::pool::{COUNTED, Held, Share};
use crate::server::{Error, Limits};
use crate::wire::{HEADER, R, T};

/// What is read at a time while no large frame is under way.
const SMALL: usize = 8 << 10;
/// A frame of more than this is large.
const LARGE: usize = 64 << 10;

/// What a large frame may take longer than a small one, for each KiB: a slow link is no fault.
const SLOWEST: Duration = Duration::from_millis(250);

/// One frame.
pub(crate) struct Frame {
    pub(crate) code: u8,
    pub(crate) tag: u16,
    /// The fields.
    pub(crate) body: Bytes,
}

impl Frame {
    /// The answer `errno` to `tag`.
    pub(crate) fn refusal(tag: u16, errno: Errno) -> Self {
        let mut whole = Vec::new();
        let answer = R::Lerror { ecode: errno.code() as u32 };
        answer.encode(tag, &mut whole);
        Self { code: answer.code(), tag, body: Bytes::from(whole).slice(7..) }
    }
}

/// The frames of a stream.
pub(crate) struct Frames<S> {
    stream: S,
    buf: BytesMut,
    /// The size of the last frame.
    last: usize,
    limits: Limits,
    /// The agreed frame size.
    msize: u32,
    /// The first frame has to come in time.
    first: Option<Instant>,
    /// What large frames take from what all may hold.
    share: Option<Share>,
    /// That of the frame that is coming.
    held: Option<Held>,
}

/// The fields of a large frame, and what it holds.
struct Large {
    body: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Frame {
    /// The fid whose attributes it asks for, if that is what it does.
    pub(crate) fn asks_about(&self) -> Option<u32> {
        asked_about(self.code, &self.body)
    }

    /// The bytes that it has on the wire.
    pub(crate) fn size(&self) -> usize {
        HEADER + self.body.len()
    }
}

/// The fid of a `Tgetattr`, the first of its fields.
fn asked_about(code: u8, fields: &[u8]) -> Option<u32> {
    let fid = u32::from_le_bytes(*fields.first_chunk()?);
    (code == T::Getattr { fid, mask: 0 }.code()).then_some(fid)
}

impl<S: AsyncRead + Send + Unpin + 'static> Frames<S> {
    /// The same, whatever the stream is.
    pub(crate) fn boxed(self) -> Frames<Box<dyn AsyncRead + Send + Unpin>> {
        let Self { stream, buf, last, limits, msize, first, share, held } = self;
        Frames { stream: Box::new(stream), buf, last, limits, msize, first, share, held }
    }
}

impl<S: AsyncRead + Unpin> Frames<S> {
    /// Those of `stream`; large ones count for `share`, if there is one.
    pub(crate) fn new(stream: S, limits: Limits, share: Option<Share>) -> Self {
        let first = Some(Instant::now() + limits.version_time);
        let msize = limits.msize.min(Limits::MSIZE_MAX);
        Self { stream, buf: BytesMut::new(), last: 0, msize, limits, first, share, held: None }
    }

    pub(crate) fn agree(&mut self, msize: u32) {
        self.msize = msize;
    }

    /// The next frame, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Error> {
        let first = self.first.map(|first| (first, self.limits.version_time, "its first message"));
        let mut begun = None;
        loop {
            if let Some(frame) = self.take()? {
                self.first = None;
                return Ok(Some(frame));
            }
            self.hold().await;
            let frame = || {
                let time = self.limits.frame_time + SLOWEST * (self.size().unwrap_or_default() >> 10);
                (*begun.get_or_insert_with(Instant::now) + time, time, "a frame")
            };
            let deadline = first.or_else(|| (!self.buf.is_empty()).then(frame));
            if !self.fill(deadline).await? {
                return Ok(None);
            }
        }
    }

    /// Waits until a large frame that has begun may be kept. Its time counts from then on.
    async fn hold(&mut self) {
        if let (None, Some(share), Some(size)) = (&self.held, &self.share, self.size())
            && size as usize >= COUNTED
        {
            self.held = share.asked(size as usize).await;
        }
    }

    async fn fill(&mut self, deadline: Option<(Instant, Duration, &'static str)>) -> Result<bool, Error> {
        let read = poll_fn(|cx| {
            self.make_room();
            let read = pin!(self.stream.read_buf(&mut self.buf)).poll(cx);
            if read.is_pending() && self.buf.is_empty() && self.buf.capacity() > LARGE {
                // Others have a use for it while nothing comes.
                self.buf = BytesMut::new();
            }
            read
        });
        let got = match deadline {
            None => read.await?,
            Some((when, time, what)) => timeout_at(when, read).await.map_err(|_| Error::TooSlow(time, what))??,
        };
        match got {
            0 if self.buf.is_empty() => Ok(false),
            0 => Err(Error::Io(std::io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(true),
        }
    }

    /// Makes room for the rest of the frame that has begun, or for one like the last.
    fn make_room(&mut self) {
        let wanted = self.size().map_or(self.last, |size| size as usize);
        if wanted <= LARGE {
            self.buf.reserve(SMALL.max(wanted - wanted.min(self.buf.len())));
        } else if self.buf.capacity() < wanted {
            let mut large = buffers::data(wanted);
            large.extend_from_slice(&self.buf);
            self.buf = large;
        }
    }

    /// The fid whose attributes the next message asks for, if that has come and does so.
    pub(crate) fn asks_about(&self) -> Option<u32> {
        let (header, fields) = self.buf.split_at_checked(HEADER)?;
        asked_about(header[4], fields)
    }

    fn size(&self) -> Option<u32> {
        self.buf.first_chunk().map(|size| u32::from_le_bytes(*size))
    }

    fn take(&mut self) -> Result<Option<Frame>, Error> {
        let Some(size) = self.size() else { return Ok(None) };
        // Refused as soon as it is announced, before anything is kept of it.
        if size < HEADER as u32 || size > self.msize {
            return Err(Error::FrameSize { size, msize: self.msize });
        }
        if self.buf.len() < size as usize {
            return Ok(None);
        }
        self.last = size as usize;
        let mut body = self.buf.split_to(self.last).freeze();
        if self.last > LARGE && self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
        body.advance(4);
        let (code, tag) = (body.get_u8(), body.get_u16_le());
        if let Some(held) = self.held.take() {
            body = Bytes::from_owner(Large { body, _held: held });
        }
        Ok(Some(Frame { code, tag, body }))
    }
}
