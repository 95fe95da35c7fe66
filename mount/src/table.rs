//! The inodes that the kernel knows: what each stands for, and how to find it again.
//!
//! A node id is never used twice. Files are known by their qid, so that hard links share pages; directories by their
//! place and qid, or a bind would move another process's working directory. An inode keeps (parent, name, qid); the
//! node itself, which may be a fid of a server, is held for a bounded number of inodes and found again by walking from
//! the nearest that is held. What is found must be the same file, else it is `ESTALE`.

use std::collections::{HashMap, VecDeque};

use p9::{Attr, Errno, FileKind, Name, NameBuf, NodeRef, Qid, Time, Walk, Want};
use parking_lot::Mutex;

/// The root's node id.
pub(crate) const ROOT: u64 = 1;

/// All inodes of one mount.
pub(crate) struct Table {
    state: Mutex<State>,
    held: usize,
}

struct State {
    inodes: HashMap<u64, Inode>,
    by_key: HashMap<Key, u64>,
    by_place: HashMap<(u64, NameBuf), u64>,
    /// Inodes that hold a node, the longest held first; some may hold none any more.
    holding: VecDeque<u64>,
    next: u64,
}

struct Inode {
    place: Option<(u64, NameBuf)>,
    key: Key,
    qid: Qid,
    /// How often the kernel was told of it, less how often it forgot.
    lookups: u64,
    opens: u32,
    node: Option<NodeRef>,
    seen: Seen,
    /// What the file was when its pages were last known to be right.
    cached: Option<Seen>,
}

#[derive(Clone, Eq, Hash, PartialEq)]
enum Key {
    File(u64),
    Dir(u64, NameBuf, u64),
}

/// What tells one state of a file's contents from another.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    version: u32,
    size: u64,
    mtime: Time,
}

impl Seen {
    pub(crate) fn of(attr: &Attr) -> Self {
        Self { version: attr.qid.version, size: attr.size, mtime: attr.mtime }
    }

    /// The size, of a file whose contents are kept and do not change as they are read.
    pub(crate) fn kept_size(self) -> Option<u64> {
        (self.version != 0).then_some(self.size)
    }
}

impl Table {
    pub(crate) fn new(root: NodeRef, held: usize) -> Self {
        let qid = root.qid();
        let key = Key::File(qid.path);
        let inode = Inode {
            place: None,
            key,
            qid,
            lookups: 1,
            opens: 1,
            node: Some(root),
            seen: Seen::default(),
            cached: None,
        };
        let state = State {
            inodes: HashMap::from([(ROOT, inode)]),
            by_key: HashMap::new(),
            by_place: HashMap::new(),
            holding: VecDeque::new(),
            next: ROOT + 1,
        };
        Self { state: Mutex::new(state), held }
    }

    /// Tells of the file `node`, found as `name` in `parent`, and gives its node id: the kernel gets it.
    pub(crate) fn enter(&self, parent: u64, name: Name<'_>, node: NodeRef, attr: &Attr) -> u64 {
        let mut state = self.state.lock();
        let qid = node.qid();
        let place = (parent, NameBuf::from(name));
        let key = match qid.kind {
            FileKind::Dir => Key::Dir(parent, place.1.clone(), qid.path),
            _ => Key::File(qid.path),
        };
        let state = &mut *state;
        let id = *state.by_key.entry(key.clone()).or_insert_with(|| {
            state.next += 1;
            state.next - 1
        });
        let inode = state.inodes.entry(id).or_insert_with(|| Inode {
            place: None,
            key,
            qid,
            lookups: 0,
            opens: 0,
            node: None,
            seen: Seen::default(),
            cached: None,
        });
        inode.lookups += 1;
        inode.seen = Seen::of(attr);
        inode.place = Some(place.clone());
        state.by_place.insert(place, id);
        state.hold(id, node, self.held);
        id
    }

    /// The file that `id` stands for.
    pub(crate) async fn node(&self, id: u64) -> Result<NodeRef, Errno> {
        let (from, names, qid) = {
            let state = self.state.lock();
            let wanted = state.inodes.get(&id).ok_or(Errno::ESTALE)?;
            if let Some(node) = &wanted.node {
                return Ok(node.clone());
            }
            let (from, names) = state.way_to(wanted)?;
            (from, names, wanted.qid)
        };
        let names: Vec<Name<'_>> = names.iter().map(NameBuf::as_name).collect();
        let walked = from.walk(&names, Want::default()).await.and_then(Walk::reached);
        let node = match walked {
            Ok(reached) => reached.node,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(Errno::ESTALE),
            Err(errno) => return Err(errno),
        };
        let found = node.qid();
        if (found.kind, found.path) != (qid.kind, qid.path) {
            return Err(Errno::ESTALE);
        }
        self.state.lock().hold(id, node.clone(), self.held);
        Ok(node)
    }

    /// Lets go of the node of `id` and of those above it: whoever served them may be gone, and is asked for again.
    pub(crate) fn let_go(&self, id: u64) {
        let mut state = self.state.lock();
        let mut at = Some(id);
        while let Some(id) = at.filter(|id| *id != ROOT) {
            let Some(inode) = state.inodes.get_mut(&id) else { return };
            inode.node = None;
            at = inode.place.as_ref().map(|(parent, _)| *parent);
        }
    }

    /// Notes the attributes of `id`, which were just asked for.
    pub(crate) fn saw(&self, id: u64, attr: &Attr) {
        if let Some(inode) = self.state.lock().inodes.get_mut(&id) {
            inode.seen = Seen::of(attr);
        }
    }

    /// What `id` was when it was last asked about.
    pub(crate) fn seen(&self, id: u64) -> Seen {
        self.state.lock().inodes.get(&id).map(|inode| inode.seen).unwrap_or_default()
    }

    /// Notes that `id` was opened when it was as `attr` says, and says whether its cached pages are still right.
    pub(crate) fn opened(&self, id: u64, attr: Option<&Attr>) -> bool {
        let mut state = self.state.lock();
        let Some(inode) = state.inodes.get_mut(&id) else { return false };
        inode.opens += 1;
        let now = attr.map(Seen::of);
        let before = std::mem::replace(&mut inode.cached, now);
        now.is_some() && before == now
    }

    pub(crate) fn closed(&self, id: u64) {
        let mut state = self.state.lock();
        if let Some(inode) = state.inodes.get_mut(&id) {
            inode.opens -= 1;
        }
        state.drop_if_unused(id);
    }

    /// The kernel forgot `count` of the times that it was told of `id`.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        let mut state = self.state.lock();
        if let Some(inode) = state.inodes.get_mut(&id) {
            inode.lookups = inode.lookups.saturating_sub(count);
        }
        state.drop_if_unused(id);
    }

    /// `name` in `parent` was removed.
    pub(crate) fn removed(&self, parent: u64, name: Name<'_>) {
        self.state.lock().by_place.remove(&(parent, NameBuf::from(name)));
    }

    /// `name` in `parent` was moved.
    pub(crate) fn renamed(&self, parent: u64, name: Name<'_>, new_parent: u64, new_name: Name<'_>) {
        let mut state = self.state.lock();
        let place = (new_parent, NameBuf::from(new_name));
        state.by_place.remove(&place);
        let Some(id) = state.by_place.remove(&(parent, NameBuf::from(name))) else { return };
        state.by_place.insert(place.clone(), id);
        let Some(inode) = state.inodes.get_mut(&id) else { return };
        inode.place = Some(place.clone());
        let new_key = match &inode.key {
            Key::Dir(_, _, path) => Key::Dir(place.0, place.1, *path),
            Key::File(_) => return,
        };
        let old_key = std::mem::replace(&mut inode.key, new_key.clone());
        state.by_key.remove(&old_key);
        state.by_key.insert(new_key, id);
    }

    /// The node id that the kernel knows `name` in `parent` by, if it does.
    pub(crate) fn known(&self, parent: u64, name: Name<'_>) -> Option<u64> {
        self.state.lock().by_place.get(&(parent, NameBuf::from(name))).copied()
    }
}

impl State {
    fn hold(&mut self, id: u64, node: NodeRef, most: usize) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        if inode.node.replace(node).is_none() {
            self.holding.push_back(id);
        }
        let mut looks = self.holding.len();
        while self.holding.len() > most && looks > 0 {
            looks -= 1;
            let Some(oldest) = self.holding.pop_front() else { return };
            match self.inodes.get_mut(&oldest) {
                // An open file may have no name any more.
                Some(inode) if inode.opens > 0 || oldest == id => self.holding.push_back(oldest),
                Some(inode) => inode.node = None,
                None => {}
            }
        }
    }

    /// The nearest node above `inode` that is held, and the names from there.
    fn way_to(&self, inode: &Inode) -> Result<(NodeRef, Vec<NameBuf>), Errno> {
        let (mut names, mut at) = (Vec::new(), inode);
        loop {
            let (parent, name) = at.place.as_ref().ok_or(Errno::ESTALE)?;
            names.push(name.clone());
            at = self.inodes.get(parent).ok_or(Errno::ESTALE)?;
            if let Some(node) = &at.node {
                names.reverse();
                return Ok((node.clone(), names));
            }
        }
    }

    fn drop_if_unused(&mut self, id: u64) {
        let unused = self.inodes.get(&id).is_some_and(|inode| inode.lookups == 0 && inode.opens == 0);
        if !unused || id == ROOT {
            return;
        }
        if let Some(inode) = self.inodes.remove(&id) {
            self.by_key.remove(&inode.key);
            if let Some(place) = inode.place
                && self.by_place.get(&place) == Some(&id)
            {
                self.by_place.remove(&place);
            }
        }
    }
}
