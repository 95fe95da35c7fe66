//! Frames off a stream: size\[4\] type\[1\] tag\[2\] and the fields.
//!
//! Used by the reader of a connection, on either side. The buffer is small while nothing comes and grows to what one frame needs, never
//! past the agreed msize; a frame that has begun must end in time.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::server::{Error, Limits};
use crate::wire::HEADER;

/// What is read at a time while no large frame is under way.
const SMALL: usize = 8 << 10;
/// A buffer larger than this is given back once it is empty.
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

/// The frames of a stream.
pub(crate) struct Frames<S> {
    stream: S,
    buf: BytesMut,
    limits: Limits,
    /// The agreed frame size.
    msize: u32,
    /// The first frame has to come in time.
    first: Option<Instant>,
}

impl Frame {
    /// The bytes that it has on the wire.
    pub(crate) fn size(&self) -> usize {
        HEADER + self.body.len()
    }
}

impl<S: AsyncRead + Send + Unpin + 'static> Frames<S> {
    /// The same, whatever the stream is.
    pub(crate) fn boxed(self) -> Frames<Box<dyn AsyncRead + Send + Unpin>> {
        let Self { stream, buf, limits, msize, first } = self;
        Frames { stream: Box::new(stream), buf, limits, msize, first }
    }
}

impl<S: AsyncRead + Unpin> Frames<S> {
    pub(crate) fn new(stream: S, limits: Limits) -> Self {
        let first = Some(Instant::now() + limits.version_time);
        Self { stream, buf: BytesMut::new(), msize: limits.msize.min(Limits::MSIZE_MAX), limits, first }
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

    async fn fill(&mut self, deadline: Option<(Instant, Duration, &'static str)>) -> Result<bool, Error> {
        let wanted = self.size().map_or(HEADER, |size| size as usize).saturating_sub(self.buf.len());
        if self.buf.is_empty() && self.buf.capacity() > LARGE {
            self.buf = BytesMut::new();
        }
        self.buf.reserve(wanted.max(SMALL));
        let read = self.stream.read_buf(&mut self.buf);
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
        let mut body = self.buf.split_to(size as usize).freeze();
        body.advance(4);
        let (code, tag) = (body.get_u8(), body.get_u16_le());
        Ok(Some(Frame { code, tag, body }))
    }
}
