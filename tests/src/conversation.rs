//! A conversation with a server, in which a peer says anything: each reply is judged as it comes.
//!
//! [`talk`] sends what it is given and returns once all of it was answered and let go, or the peer has hung up. It says
//! what the server did wrong: a reply that nobody asked for, or of another type, or garbled, or none; an end of the
//! connection without a reason; anything of the canary's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use p9::Name;
use p9::wire::{Dialect, Dirent, HEADER, NO_FID, NO_TAG, NO_UID, R, Step, Steps, Str, T};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::canary::Canary;
use crate::parked::Parked;
use crate::said::{AT_FIRST, FIDS, Said};

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of the attributes that follow an entry of Rreaddirplus.
const ATTRIBUTES: usize = 153;

/// How long nothing need come before what waits is flushed.
const IMPATIENCE: Duration = Duration::from_millis(250);

/// What is known of the conversation, by both of its halves.
struct State {
    /// The messages that wait for an answer: which, by tag.
    waiting: HashMap<u16, Vec<u8>>,
    /// Tags whose messages another Tversion has ended: they may still be answered before that is.
    lapsed: HashSet<u16>,
    msize: usize,
    dialect: Dialect,
    /// Something was said that the server may end the connection for.
    may_end: Arc<AtomicBool>,
    /// Leases that are to be given back: of which fid, and what may be kept.
    breaks: VecDeque<(u32, u8)>,
    ended: bool,
    fault: Option<String>,
}

impl State {
    fn may_end(&self) -> bool {
        self.may_end.load(Ordering::SeqCst)
    }
}

/// Where a conversation is held.
#[derive(Clone)]
pub struct Around {
    /// What no reply may tell of.
    pub canary: Arc<Canary>,
    /// What requests wait in.
    pub parked: Parked,
    /// Set when something was said that the server may end the connection for: one for all lanes of a session.
    pub may_end: Arc<AtomicBool>,
    /// Whether Tsession and Tack are accidents of a session, and no messages.
    pub session: bool,
    /// Nothing is waited for at the end.
    pub hang_up: bool,
}

/// Both halves.
struct Conversation<W> {
    to: W,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    around: Around,
    tag: u16,
    /// Leases that were to be given back so far.
    breaks: usize,
}

/// Says `said` to the server at the other end of `stream`, in `dialect`; how many of them were said before the server
/// ended it.
pub async fn talk<S>(stream: S, dialect: Dialect, said: &[Said], around: &Around) -> Result<usize, String>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (from, to) = tokio::io::split(stream);
    let state = State {
        waiting: HashMap::new(),
        lapsed: HashSet::new(),
        msize: 1 << 20,
        dialect,
        may_end: around.may_end.clone(),
        breaks: VecDeque::new(),
        ended: false,
        fault: None,
    };
    let (state, changed) = (Arc::new(Mutex::new(state)), around.parked.changed());
    let hearing = tokio::spawn(hear(from, state.clone(), changed.clone(), around.canary.clone()));
    let mut conversation =
        Conversation { to, state: state.clone(), changed, around: around.clone(), tag: 0, breaks: 0 };
    let done = conversation.all(dialect, said).await;
    hearing.abort();
    let fault = state.lock().fault.take();
    match fault {
        Some(fault) => Err(fault),
        None => done,
    }
}

impl<W: AsyncWrite + Unpin> Conversation<W> {
    async fn all(&mut self, dialect: Dialect, said: &[Said]) -> Result<usize, String> {
        self.message(&T::Version { msize: 8192, version: Str(dialect.version()) }, false).await;
        self.settle().await?;
        for (count, message) in said.iter().enumerate() {
            if message.waits {
                self.settle().await?;
            }
            if self.is_over()? {
                return Ok(count);
            }
            self.give_back().await;
            if let Some(fid) = message.clunks {
                self.message(&T::Clunk { fid }, false).await;
            }
            self.say(message).await;
        }
        if self.around.hang_up {
            return Ok(said.len());
        }
        self.settle().await?;
        for fid in (0..FIDS).chain([77, 1 << 31]) {
            self.message(&T::Clunk { fid }, false).await;
        }
        self.settle().await?;
        self.is_over()?;
        Ok(said.len())
    }

    /// Whether the server has ended it. Errors: it had no reason to, or has done wrong otherwise.
    fn is_over(&self) -> Result<bool, String> {
        let state = self.state.lock();
        match &state.fault {
            Some(fault) => Err(fault.clone()),
            None if state.ended && !state.may_end() => Err("the server ended a proper conversation".into()),
            None => Ok(state.ended),
        }
    }

    /// What follows each Tversion.
    async fn attach(&mut self) {
        let name = Str(b"");
        self.message(&T::Attach { fid: 0, afid: NO_FID, uname: name, aname: name, n_uname: Some(NO_UID) }, false).await;
        for (fid, newfid, names) in AT_FIRST {
            let names: Vec<Step<'_>> = names.iter().map(|name| Step::Into(Name::new(name).expect("a name"))).collect();
            let steps = Steps::encode(&names);
            let steps = Steps::of(&steps, names.len() as u16);
            self.message(&T::Walk { fid, newfid, steps }, false).await;
        }
    }

    async fn message(&mut self, message: &T<'_>, ends: bool) {
        let mut frame = Vec::new();
        message.encode(0, &mut frame);
        self.say(&Said { frame, ends, again: None, waits: false, clunks: None }).await;
    }

    async fn say(&mut self, said: &Said) {
        let (mut frame, code) = (said.frame.clone(), said.frame[4]);
        if self.around.session
            && let 200 | 202 = code
        {
            self.state.lock().may_end.fetch_or(said.ends, Ordering::SeqCst);
            frame[5..HEADER].copy_from_slice(&NO_TAG.to_le_bytes());
            let _ = self.to.write_all(&frame).await;
            return;
        }
        if said.again.is_none() {
            self.tag = (self.tag + 1) % (NO_TAG - 1);
        }
        let tag = self.tag.saturating_sub(said.again.unwrap_or(0));
        frame[5..HEADER].copy_from_slice(&tag.to_le_bytes());
        if let (108, [low, high]) = (code, &frame[HEADER..]) {
            let old = tag.wrapping_sub(u16::from_le_bytes([*low, *high]));
            frame[HEADER..].copy_from_slice(&old.to_le_bytes());
        }
        {
            let mut state = self.state.lock();
            state.may_end.fetch_or(said.ends, Ordering::SeqCst);
            if code == 100 {
                let lapsed: Vec<u16> = state.waiting.drain().map(|(tag, _)| tag).collect();
                state.lapsed.extend(lapsed);
            }
            state.waiting.entry(tag).or_default().push(code);
        }
        // Whether it is heard is the other half's to say.
        let _ = self.to.write_all(&frame).await;
        if code == 100 {
            Box::pin(self.attach()).await;
        }
    }

    /// Answers what asks for leases back, but for some.
    async fn give_back(&mut self) {
        loop {
            let Some((fid, keep)) = self.state.lock().breaks.pop_front() else { return };
            self.breaks += 1;
            match self.breaks % 5 {
                0 => {}
                1 => Box::pin(self.message(&T::Clunk { fid }, false)).await,
                _ => Box::pin(self.message(&T::Lease { fid, kind: keep }, false)).await,
            }
        }
    }

    /// Waits until nothing is waited for; what waits for what never comes is flushed.
    async fn settle(&mut self) -> Result<(), String> {
        let (mut flushed, mut impatient, since) = (HashSet::new(), false, Instant::now());
        loop {
            let changed = self.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            self.give_back().await;
            let waiting: Vec<(u16, Vec<u8>)> = {
                let state = self.state.lock();
                if state.ended || state.waiting.is_empty() {
                    return Ok(());
                }
                state.waiting.iter().map(|(tag, codes)| (*tag, codes.clone())).collect()
            };
            if impatient || self.around.parked.count() > 0 {
                let old: Vec<u16> = waiting.iter().map(|(tag, _)| *tag).filter(|tag| flushed.insert(*tag)).collect();
                for oldtag in old {
                    // As an offset from its own tag: see `say`.
                    let oldtag = (self.tag + 1) % (NO_TAG - 1) - oldtag;
                    self.message(&T::Flush { oldtag }, false).await;
                    flushed.insert(self.tag);
                }
            }
            // A lock may have been asked for, too, which is held.
            impatient = timeout(IMPATIENCE, changed).await.is_err();
            if since.elapsed() > PATIENCE {
                return Err(format!("never answered (tags and types): {waiting:?}"));
            }
        }
    }
}

/// Hears all that the server says.
async fn hear(mut from: impl AsyncRead + Unpin, state: Arc<Mutex<State>>, changed: Arc<Notify>, canary: Arc<Canary>) {
    loop {
        let mut size = [0; 4];
        let mut frame = size.to_vec();
        let heard = match from.read_exact(&mut size).await {
            Ok(_) => {
                frame.copy_from_slice(&size);
                frame.resize((u32::from_le_bytes(size) as usize).clamp(HEADER, 8 << 20), 0);
                from.read_exact(&mut frame[4..]).await
            }
            Err(err) => Err(err),
        };
        let mut state = state.lock();
        if heard.is_err() {
            state.ended = true;
        } else if let Err(fault) = judge(&mut state, &frame, &canary) {
            state.fault = Some(format!("{fault}: {}", frame.escape_ascii()));
            state.ended = true;
        }
        changed.notify_waiters();
        if state.ended {
            return;
        }
    }
}

/// Judges one reply.
fn judge(state: &mut State, frame: &[u8], canary: &Canary) -> Result<(), String> {
    let (size, code) = (u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, frame[4]);
    let tag = u16::from_le_bytes([frame[5], frame[6]]);
    if size != frame.len() || size > state.msize {
        return Err(format!("a reply of {size} bytes, where {} were agreed on", state.msize));
    }
    if let Some(mark) = canary.marked(frame) {
        return Err(format!("a reply has the canary's {mark}"));
    }
    let reply = match R::decode(code, &frame[HEADER..]) {
        Ok(Some(reply)) => reply,
        other => return Err(format!("no reply: {other:?}")),
    };
    match reply {
        R::Break { fid, keep } if tag == NO_TAG && state.dialect == Dialect::Slashn => {
            state.breaks.push_back((fid, keep));
            return Ok(());
        }
        R::Lerror { .. } | R::Error { .. } if tag == NO_TAG && state.may_end() => return Ok(()),
        R::Version { msize, version } => {
            state.msize = msize as usize;
            state.dialect = Dialect::of_version(version.0).unwrap_or_default();
            // Unless there is another after it.
            if state.waiting.contains_key(&tag) {
                state.lapsed.clear();
            }
        }
        R::Readdir { data } => entries(data.0, false)?,
        R::Readdirplus { data } => entries(data.0, true)?,
        _ => {}
    }
    let failed = if state.dialect == Dialect::Legacy { 107 } else { 7 };
    let Some(codes) = state.waiting.get_mut(&tag) else {
        return if state.lapsed.contains(&tag) {
            Ok(())
        } else {
            Err(format!("tag {tag} is answered, which is not in use"))
        };
    };
    // When the peer has said more than it may, the last words are in the dialect that there is.
    let answers = |asked: &u8| code.checked_sub(1) == Some(*asked) || code == failed;
    match codes.iter().position(answers) {
        Some(at) => drop(codes.remove(at)),
        None if state.lapsed.contains(&tag) => return Ok(()),
        None => return Err(format!("a reply of type {code} to {codes:?}")),
    }
    if codes.is_empty() {
        state.waiting.remove(&tag);
    }
    if code != failed {
        DONE[usize::from(code)].fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// How often each reply came that is no error.
static DONE: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// The messages that no server has done so far, in this process: by their type bytes.
pub fn never_done() -> Vec<u8> {
    T::CODES.iter().copied().filter(|code| DONE[usize::from(*code) + 1].load(Ordering::Relaxed) == 0).collect()
}

/// Judges the entries of a directory, each of which has its attributes after it where these were asked for.
fn entries(mut data: &[u8], with_attributes: bool) -> Result<(), String> {
    while !data.is_empty() {
        let (rest, entry) = Dirent::read(data).map_err(|why| format!("entries: {why}"))?;
        let ends = with_attributes && entry.name.0.is_empty() && entry.offset == 0;
        if !ends {
            Name::new(entry.name.0).map_err(|errno| format!("the entry {:?}: {errno:?}", entry.name))?;
        }
        data = match if with_attributes { rest.split_at_checked(ATTRIBUTES) } else { Some((&[][..], rest)) } {
            Some((_, rest)) if !ends || rest.is_empty() => rest,
            other => return Err(format!("what follows the entry {:?}: {other:?}", entry.name)),
        };
    }
    Ok(())
}
