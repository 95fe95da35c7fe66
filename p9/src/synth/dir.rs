//! Synthetic directories: fixed ones, and those whose entries come and go.
//!
//! A cookie is a hash of the entry's name, and entries are listed in the order of their cookies: so it stays good
//! whatever comes and goes in between, and two names of one file, or files of several trees, do not get in each
//! other's way.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    Attr, Created, Dir, DirSink, Entry, Errno, FileKind, Handle, How, Name, NameBuf, New, Node, NodeRef, Opened, Qid,
    Reply, SetAttr, Walk, Want, What,
};

/// The entries of a directory that is not fixed.
pub trait Listing: Send + Sync + 'static {
    /// The entry called `name`, if there is one. While it is the same thing, it has the same qid each time.
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>>;

    /// All entries, in any order.
    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>>;
}

/// A directory with these entries (0555). Names that cannot be names are left out.
pub fn dir<'n>(entries: impl IntoIterator<Item = (&'n str, NodeRef)>) -> NodeRef {
    let named = |(name, node): (&str, NodeRef)| Some((NameBuf::new(name).ok()?, node));
    directory(Arc::new(Fixed(entries.into_iter().filter_map(named).collect())))
}

/// A directory whose entries are what `listing` says (0555).
pub fn directory(listing: Arc<dyn Listing>) -> NodeRef {
    Arc::new(Directory { attr: super::attr(FileKind::Dir, 0o555), listing })
}

struct Fixed(BTreeMap<NameBuf, NodeRef>);

impl Listing for Fixed {
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>> {
        Reply::ok(self.0.get(name.as_bytes()).cloned())
    }

    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>> {
        Reply::ok(self.0.iter().map(|(name, node)| (name.clone(), node.clone())).collect())
    }
}

/// The attributes of `node` if they need not be asked for: an entry may be a file of another machine.
fn attr_at_hand(node: &NodeRef) -> Option<Attr> {
    match node.attr() {
        Reply::Now(ready) => ready.into_inner().ok(),
        Reply::Later(_) => None,
    }
}

struct Directory {
    attr: Attr,
    listing: Arc<dyn Listing>,
}

impl Directory {
    async fn entry(&self, name: Name<'_>) -> Result<NodeRef, Errno> {
        self.listing.lookup(name).await?.ok_or(Errno::ENOENT)
    }

    async fn open_at_now(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        let Some((&first, rest)) = names.split_first() else {
            let (handle, attr) = (self.open(how).await?, want.attr.then_some(self.attr));
            return Ok(Opened { node: None, attr, handle, first: None, lease: None });
        };
        let node = self.entry(first).await?;
        // Whatever is there may open in one go what would take this directory two.
        let opened = node.open_at(rest, how, want).await?;
        Ok(if rest.is_empty() { Opened { node: Some(node), ..opened } } else { opened })
    }

    /// Nothing can be made here, but what is there already opens, as open(2) with `O_CREAT` does.
    async fn create_now(&self, name: Name<'_>, what: What<'_>) -> Result<Created, Errno> {
        let node = self.listing.lookup(name).await?.ok_or(Errno::EROFS)?;
        match what {
            What::File(how) if !how.excl => {
                let handle = Some(node.open(how).await?);
                Ok(Created { attr: attr_at_hand(&node), node, handle, lease: None })
            }
            _ => Err(Errno::EEXIST),
        }
    }
}

impl Node for Directory {
    fn qid(&self) -> Qid {
        self.attr.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        let Some((&first, rest)) = names.split_first() else { return Errno::EINVAL.into() };
        if rest.is_empty() {
            return self.listing.lookup(first).then(move |found| {
                let node = found?.ok_or(Errno::ENOENT)?;
                let attr = if want.attr { attr_at_hand(&node) } else { None };
                Ok(Walk::one(node, attr))
            });
        }
        Reply::later(async move {
            let node = self.entry(first).await?;
            Ok(Walk::after(node.qid(), node.walk(rest, want).await))
        })
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(self.open_at_now(names, how, want))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(self.attr)
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        if how.changes() {
            return Errno::EISDIR.into();
        }
        let gathered = Mutex::default();
        Reply::ok(Handle::Dir(Arc::new(Open { listing: self.listing.clone(), gathered })))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        Reply::later(self.create_now(name, what.what))
    }

    fn set_attr(&self, _change: SetAttr) -> Reply<'_, Attr> {
        Errno::EPERM.into()
    }
}

/// Cookies, names and nodes, in the order of the cookies.
type Gathered = Arc<Vec<(u64, NameBuf, NodeRef)>>;

/// An open directory. What is in it is gathered whenever it is read from the start, and once for all that follows.
struct Open {
    listing: Arc<dyn Listing>,
    gathered: Mutex<Option<Gathered>>,
}

impl Open {
    async fn gather(&self, cookie: u64) -> Result<Gathered, Errno> {
        let kept = self.gathered.lock().clone().filter(|_| cookie != 0);
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let entries = self.listing.list().await?;
        let mut entries: Vec<_> = entries.into_iter().map(|(name, node)| (cookie_of(&name), name, node)).collect();
        entries.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let entries = Arc::new(entries);
        *self.gathered.lock() = Some(entries.clone());
        Ok(entries)
    }
}

impl Dir for Open {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let entries = self.gather(cookie).await?;
            let after = entries.partition_point(|&(at, ..)| at <= cookie);
            for (cookie, name, node) in &entries[after..] {
                let (qid, attr) = (node.qid(), attr_at_hand(node));
                let kind = attr.map_or(qid.kind.mode_bits(), |attr| attr.mode & libc::S_IFMT);
                let entry = Entry { cookie: *cookie, qid, kind, attr: attr.as_ref(), name: name.as_name() };
                if each(entry).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// 62 bits of the name's hash, and never 0: the kernel takes an offset for a signed number.
fn cookie_of(name: &NameBuf) -> u64 {
    let mut hash = DefaultHasher::new();
    name.hash(&mut hash);
    (hash.finish() >> 2) | 1
}
