//! Listing a place: what is mounted below it first, then each of its trees in order.
//!
//! Plan 9's rule: a union lists its members one after another, duplicates kept, a member that fails skipped. A cookie
//! stands for (member, the member's cookie), so that going on asks that member to go on, and nothing is gathered; a
//! place with a single source hands out that source's own cookies.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use p9::layer::Layer;
use p9::{Dir, DirSink, Entry, Errno, Handle, How, Name, NameBuf, Qid, Reply};
use parking_lot::Mutex;

use crate::point::{first_with, marks};
use crate::table::{Member, Place};
use crate::under::Under;

/// The most cookies that one open directory remembers (64 MiB of them).
const MAX_COOKIES: usize = 4 << 20;

/// A place that is being listed.
pub(crate) struct Listing {
    /// What is mounted below and in no tree here, or hides what is; in the order of the names.
    mounts: Vec<(NameBuf, Qid)>,
    members: Vec<(Under, Arc<dyn Dir>)>,
    /// By number, those that merge.
    merging: Vec<usize>,
    /// Of those, the ones with marks.
    marking: Vec<usize>,
    /// Which of those had each of their names first.
    first: Mutex<HashMap<NameBuf, usize>>,
    /// Where each cookie that was handed out leads: cookie N is number N - 1. The mounts are member 0.
    cookies: Mutex<Vec<(usize, u64)>>,
}

impl Listing {
    /// Opens `members` to list them, with what is mounted below `place`; `qid` tells what the place of a name below is.
    /// Errors: those of a member, if none could be opened and nothing is mounted below.
    pub(crate) async fn open(
        place: &Place, members: Vec<Member>, how: How, qid: &(dyn Fn(Name<'_>) -> Qid + Sync),
    ) -> Result<Self, Errno> {
        let mut mounts = Vec::new();
        for (name, below) in &place.below {
            let name = name.as_name();
            // On the way to a mount point, what a tree has there shows.
            if !below.members.is_empty() || first_with(&members, name).await?.is_none() {
                mounts.push((name.into(), qid(name)));
            }
        }
        let (mut open, mut failed, mut merging, mut marking) = (Vec::new(), None, Vec::new(), Vec::new());
        for member in members {
            match member.node.open(how).await {
                Ok(Handle::Dir(dir)) => {
                    open.push((Under { id: member.id, at: None }, dir));
                    merging.extend(member.merge.then_some(open.len()));
                    marking.extend(member.mark.then_some(open.len()));
                }
                Ok(_) => failed = Some(Errno::ENOTDIR),
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                Err(errno) => failed = Some(errno),
            }
        }
        match failed {
            Some(errno) if open.is_empty() && mounts.is_empty() => Err(errno),
            _ => {
                let (first, cookies) = Default::default();
                Ok(Self { mounts, members: open, merging, marking, first, cookies })
            }
        }
    }

    fn is_single(&self) -> bool {
        self.mounts.is_empty() && self.members.len() == 1 && self.marking.is_empty()
    }

    /// The cookie that follows `last` and stands for going on in `member` after its own `cookie`. `None` when there
    /// are too many.
    fn cookie(&self, last: u64, member: usize, cookie: u64) -> Option<u64> {
        if self.is_single() {
            return Some(cookie);
        }
        let mut cookies = self.cookies.lock();
        // Read again, it is the same one again.
        if cookies.get(last as usize) == Some(&(member, cookie)) {
            return Some(last + 1);
        }
        if cookies.len() == MAX_COOKIES {
            return None;
        }
        cookies.push((member, cookie));
        Some(cookies.len() as u64)
    }

    /// Where a cookie leads.
    fn place(&self, cookie: u64) -> Result<(usize, u64), Errno> {
        match cookie.checked_sub(1) {
            _ if self.is_single() => Ok((1, cookie)),
            None => Ok((0, 0)),
            Some(at) => self.cookies.lock().get(at as usize).copied().ok_or(Errno::EINVAL),
        }
    }

    /// Whether the name, of member `at`, is listed as another's.
    fn hides(&self, name: Name<'_>, at: usize) -> bool {
        if self.marking.contains(&at)
            && let Some(hidden) = marks::hidden_by(name)
        {
            // What the member has of that name itself is there.
            self.first.lock().entry(hidden).or_insert(at);
            return true;
        }
        if self.merging.len() > 1 && self.merging.contains(&at) {
            let mut first = self.first.lock();
            let known = first.get(name.as_bytes()).copied();
            if known.is_none() && first.len() < MAX_COOKIES {
                first.insert(name.into(), at);
            }
            if known.is_some_and(|first| first != at) {
                return true;
            }
        }
        self.mounts.binary_search_by(|(mount, _)| mount.as_name().cmp(&name)).is_ok()
    }

    async fn list_now(&self, cookie: u64, each: &mut DirSink<'_>) -> Result<(), Errno> {
        let (mut member, mut after) = self.place(cookie)?;
        let mut last = cookie;
        if member == 0 {
            for (i, (name, qid)) in self.mounts.iter().enumerate().skip(after as usize) {
                let cookie = self.cookie(last, 0, i as u64 + 1).ok_or(Errno::EOVERFLOW)?;
                let entry = Entry { cookie, qid: *qid, kind: qid.kind.mode_bits(), attr: None, name: name.as_name() };
                if each(entry).is_break() {
                    return Ok(());
                }
                last = cookie;
            }
            (member, after) = (1, 0);
        }
        let (mut listed, mut failed) = (false, None);
        for (at, (under, dir)) in self.members.iter().enumerate().skip(member - 1) {
            let mut full = None;
            let mut take = |entry: Entry<'_>| {
                if self.hides(entry.name, at + 1) {
                    return ControlFlow::Continue(());
                }
                let Some(cookie) = self.cookie(last, at + 1, entry.cookie) else {
                    full = Some(Err(Errno::EOVERFLOW));
                    return ControlFlow::Break(());
                };
                match under.entry(Entry { cookie, ..entry }, each) {
                    ControlFlow::Continue(()) => last = cookie,
                    ControlFlow::Break(()) => full = Some(Ok(())),
                }
                if full.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let answer = dir.list(after, &mut take).await;
            if let Some(full) = full {
                return full;
            }
            match answer {
                Ok(()) => listed = true,
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                Err(errno) => {
                    tracing::debug!("a member of a union is skipped: {errno}");
                    failed = Some(errno);
                }
            }
            after = 0;
        }
        match failed {
            // Nothing could be listed: that is not an empty directory.
            Some(errno) if !listed && last == cookie => Err(errno),
            _ => Ok(()),
        }
    }
}

impl Dir for Listing {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(self.list_now(cookie, each))
    }
}
