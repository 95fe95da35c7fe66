//! Listing a place: what is mounted below it first, then each of its trees in order.
//!
//! Plan 9's rule: a union lists its members one after another, duplicates kept, a member that fails skipped. A cookie
//! stands for (member, the member's cookie), so that going on asks that member to go on, and nothing is gathered; only
//! a place with a single source hands out that source's own cookies.

use std::ops::ControlFlow;
use std::sync::Arc;

use p9::{Dir, DirSink, Entry, Errno, FileKind, Handle, How, NameBuf, Qid, Reply, Want};
use parking_lot::Mutex;

use crate::table::{Member, Place};
use crate::under::TreeId;

/// A place that is being listed.
pub(crate) struct Listing {
    /// Mount points that no tree here has under their names, or that hide what one has.
    mounts: Vec<(NameBuf, Qid)>,
    members: Vec<(TreeId, Arc<dyn Dir>)>,
    /// Where each cookie that was handed out leads: cookie N is `places[N - 1]`.
    places: Mutex<Vec<(u32, u64)>>,
}

impl Listing {
    pub(crate) async fn open(place: &Place, members: Vec<Member>, how: How) -> Result<Self, Errno> {
        let mut mounts = Vec::new();
        for (name, below) in &place.below {
            match below.members.first() {
                Some(first) => mounts.push((name.clone(), first.id.mix(first.node.qid()))),
                None if exists(&members, name).await => {}
                None => mounts.push((name.clone(), Qid { kind: FileKind::Dir, version: 0, path: hash(name) })),
            }
        }
        let (mut open, mut failed) = (Vec::new(), None);
        for member in members {
            match member.node.open(how).await {
                Ok(Handle::Dir(dir)) => open.push((member.id, dir)),
                Ok(_) => {}
                Err(errno) => failed = Some(errno),
            }
        }
        match failed {
            Some(errno) if open.is_empty() && mounts.is_empty() => Err(errno),
            _ => Ok(Self { mounts, members: open, places: Mutex::default() }),
        }
    }

    /// The cookie that stands for going on in `member` after its own `cookie`.
    fn cookie(&self, member: usize, cookie: u64) -> u64 {
        if self.mounts.is_empty() && self.members.len() == 1 {
            return cookie;
        }
        let mut places = self.places.lock();
        places.push((member as u32, cookie));
        places.len() as u64
    }

    /// Where a cookie leads: the mounts are member 0.
    fn place(&self, cookie: u64) -> Result<(usize, u64), Errno> {
        if self.mounts.is_empty() && self.members.len() == 1 {
            return Ok((1, cookie));
        }
        match cookie.checked_sub(1) {
            None => Ok((0, 0)),
            Some(at) => {
                let places = self.places.lock();
                let (member, cookie) = *places.get(at as usize).ok_or(Errno::EINVAL)?;
                Ok((member as usize, cookie))
            }
        }
    }

    async fn list_now(&self, cookie: u64, each: &mut DirSink<'_>) -> Result<(), Errno> {
        let (mut member, mut after) = self.place(cookie)?;
        if member == 0 {
            for (i, (name, qid)) in self.mounts.iter().enumerate().skip(after as usize) {
                let (cookie, name) = (self.cookie(0, i as u64 + 1), name.as_name());
                if each(Entry { cookie, qid: *qid, kind: qid.kind.mode_bits(), attr: None, name }).is_break() {
                    return Ok(());
                }
            }
            (member, after) = (1, 0);
        }
        for (at, (id, dir)) in self.members.iter().enumerate().skip(member - 1) {
            let mut full = false;
            let mut take = |entry: Entry<'_>| {
                if self.mounts.iter().any(|(name, _)| name.as_name() == entry.name) {
                    return ControlFlow::Continue(());
                }
                let flow = id.entry(Entry { cookie: self.cookie(at + 1, entry.cookie), ..entry }, each);
                full = flow.is_break();
                flow
            };
            let listed = dir.list(after, &mut take).await;
            if full {
                return Ok(());
            }
            if let Err(errno) = listed {
                if self.members.len() == 1 {
                    return Err(errno);
                }
                tracing::debug!("a member of a union is skipped: {errno}");
            }
            after = 0;
        }
        Ok(())
    }
}

impl Dir for Listing {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(self.list_now(cookie, each))
    }
}

async fn exists(members: &[Member], name: &NameBuf) -> bool {
    for member in members {
        if member.node.walk(&[name.as_name()], Want::default()).await.is_ok() {
            return true;
        }
    }
    false
}

fn hash(name: &NameBuf) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
