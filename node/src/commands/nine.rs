//! `9p`: one file of one server, for scripts and for looking at servers, without a mount.
//!
//! It speaks to any 9P server: one of ours by name, with my key, or any at a dial string. What it prints is the file's
//! own bytes; everything else goes to standard error.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use p9::client::{self, Client};
use p9::dial::Address;
use p9::transport;
use p9::{Errno, Handle, How, Name, New, NodeRef, Opened, Tree, Want, What, Who};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::Context;
use crate::cli::{Nine, NineAction};
use crate::commands::runtime;
use crate::dial::{Dialer, LINGER};
use crate::error::{At, Error, Result};

mod show;

/// The most that is read or written at a time.
const PIECE: usize = 1 << 20;

/// Runs the command.
pub fn run(context: &Context, typed: &Nine) -> Result<ExitCode> {
    let runtime = runtime()?;
    let done = runtime.block_on(act(context, typed));
    // Standard input may be waited for without end.
    runtime.shutdown_timeout(Duration::ZERO);
    match done {
        Err(Stop::Failed(error)) => Err(error),
        // Whoever read our output has gone: no error, as elsewhere.
        Ok(()) | Err(Stop::Unread) => Ok(ExitCode::SUCCESS),
    }
}

/// Why it ends early.
enum Stop {
    Failed(Error),
    Unread,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Done<T = ()> = Result<T, Stop>;

async fn act(context: &Context, typed: &Nine) -> Done {
    match &typed.action {
        NineAction::Ls { long, directory, paths } => {
            for path in paths {
                let place = Place::find(context, typed, path).await?;
                print(&show::list(&place, path, *long, *directory).await.at("ls", path.display())?)?;
            }
        }
        NineAction::Stat { paths } => {
            for path in paths {
                let node = Place::find(context, typed, path).await?.node().await.at("stat", path.display())?;
                print(show::all(&node.attr().await.at("stat", path.display())?, path).as_bytes())?;
            }
        }
        NineAction::Rm { paths } => {
            for path in paths {
                remove(&Place::find(context, typed, path).await?).await.at("rm", path.display())?;
            }
        }
        NineAction::Mkdir { paths } => {
            for path in paths {
                make(&Place::find(context, typed, path).await?).await.at("mkdir", path.display())?;
            }
        }
        NineAction::Read { path } => {
            let opened = Place::find(context, typed, path).await?.open(How::READ).await.at("read", path.display())?;
            if matches!(opened.handle, Handle::Dir(_)) {
                let error = Error::new("read", path.display(), Errno::EISDIR);
                return Err(error.remedy(format!("9p ls {}", path.display())).into());
            }
            copy_out("read", path, &opened.handle).await?;
        }
        NineAction::Write { append, lines, path } => {
            let place = Place::find(context, typed, path).await?;
            let handle = open_to_write(&place, *append).await.at("write", path.display())?;
            let written = copy_in("write", path, &handle, *lines).await;
            let closed = handle.close().await.at("close", path.display());
            written?;
            closed?;
        }
        NineAction::Con { path } => {
            let opened = Place::find(context, typed, path).await?.open(How::RDWR).await.at("con", path.display())?;
            let talk = async {
                copy_in("con", path, &opened.handle, false).await?;
                // Nothing more to say: what it says is still heard.
                std::future::pending::<Done>().await
            };
            tokio::select! {
                said = copy_out("con", path, &opened.handle) => said?,
                failed = talk => failed?,
            }
        }
    }
    Ok(())
}

/// A path of a server, not walked yet.
struct Place<'p> {
    root: NodeRef,
    names: Vec<Name<'p>>,
    /// Kept: the connection ends with it.
    _client: Client,
}

impl<'p> Place<'p> {
    /// Attaches to the server that `path` is on.
    async fn find(context: &Context, typed: &Nine, path: &'p OsStr) -> Result<Self> {
        let mut names = Name::split(path.as_bytes()).at("read the path", path.display())?;
        let server = match &typed.address {
            Some(address) => address.clone(),
            None if names.is_empty() => {
                let error = Error::new("find the server", path.display(), "it begins with no node's name");
                return Err(error.remedy("9p -a ADDR ..., or 9p ls NODE/fs").status(2));
            }
            None => names.remove(0).to_string(),
        };
        let client = connect(context, &server).await?;
        let aname = typed.aname.as_bytes();
        let root = client
            .attach(&user(context), aname)
            .await
            .at("attach", format_args!("{server}: {}", typed.aname.display()))?;
        Ok(Self { root, names, _client: client })
    }

    async fn node(&self) -> Result<NodeRef, Errno> {
        match self.names.is_empty() {
            true => Ok(self.root.clone()),
            false => Ok(self.root.walk(&self.names, Want::default()).await?.reached()?.node),
        }
    }

    async fn open(&self, how: How) -> Result<Opened, Errno> {
        self.root.open_at(&self.names, how, Want::default()).await
    }

    /// The directory that it is in, and its name there.
    async fn parent(&self) -> Result<(NodeRef, Name<'p>), Errno> {
        let (last, before) = self.names.split_last().ok_or(Errno::EBUSY)?;
        let parent = Self { root: self.root.clone(), names: before.to_vec(), _client: self._client.clone() };
        Ok((parent.node().await?, *last))
    }
}

/// Who I am to a server that goes by what it is told.
fn user(context: &Context) -> Who {
    Who { user: context.user().into(), ..Who::owner() }
}

async fn connect(context: &Context, server: &str) -> Result<Client> {
    let options = client::Options::default();
    let client = match server.parse::<Address>() {
        Ok(Address::Unix(path)) => Client::connect(transport::unix(&path).await.at("connect", server)?, options).await,
        Ok(Address::Tcp(to)) => Client::connect(transport::tcp(&to).await.at("connect", server)?, options).await,
        Ok(Address::Tls(to)) => return known(context, &to.to_string()).await,
        Err(_) => return known(context, server).await,
    };
    client.at("connect", server)
}

/// A node that I know, with the key that it must have.
async fn known(context: &Context, name: &str) -> Result<Client> {
    let dialer = Dialer::open(&context.home_or_lent()?, context.agent())?;
    Ok(dialer.attach(&dialer.find(name)?, LINGER).await?.0)
}

async fn remove(place: &Place<'_>) -> Result<(), Errno> {
    let (parent, name) = place.parent().await?;
    match parent.remove(name, false).await {
        Err(Errno::EISDIR | Errno::EPERM) => parent.remove(name, true).await,
        done => done,
    }
}

async fn make(place: &Place<'_>) -> Result<(), Errno> {
    let (parent, name) = place.parent().await?;
    let new = New { what: What::Dir, mode: 0o777 & !umask(), owner: None };
    parent.create(name, new).await.map(|_| ())
}

async fn open_to_write(place: &Place<'_>, append: bool) -> Result<Handle, Errno> {
    let how = How { append, truncate: !append, ..How::WRITE };
    match place.open(how).await {
        Err(Errno::ENOENT) => {}
        opened => return Ok(opened?.handle),
    }
    let (parent, name) = place.parent().await?;
    let new = New { what: What::File(how), mode: 0o666 & !umask(), owner: None };
    parent.create(name, new).await?.handle.ok_or(Errno::EISDIR)
}

/// The umask, which only setting it tells.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.bits()
}

/// Prints what `file` holds or says, to its end.
async fn copy_out(step: &str, path: &OsStr, file: &Handle) -> Done {
    let mut offset = 0;
    loop {
        let data = file.read(offset, PIECE as u32).await.at(step, path.display())?;
        if data.is_empty() {
            return Ok(());
        }
        offset += data.len() as u64;
        print(&data)?;
    }
}

/// Writes standard input to `file`.
async fn copy_in(step: &str, path: &OsStr, file: &Handle, lines: bool) -> Done {
    let mut input = BufReader::with_capacity(PIECE, tokio::io::stdin());
    let mut offset = 0;
    loop {
        let data = piece(&mut input, lines).await.at(step, "standard input")?;
        if data.is_empty() {
            return Ok(());
        }
        let mut rest = data;
        while !rest.is_empty() {
            let count = file.write(offset, rest.clone()).await.at(step, path.display())?.count as usize;
            if count == 0 {
                return Err(Error::new(step, path.display(), "it takes no more").into());
            }
            offset += count as u64;
            rest = rest.slice(count.min(rest.len())..);
        }
    }
}

/// What there is to write next: a line, or what has come; nothing at the end.
async fn piece(input: &mut (impl AsyncBufRead + Unpin), line: bool) -> io::Result<Bytes> {
    let mut data = Vec::new();
    match line {
        true => {
            let mut limited = input.take(PIECE as u64);
            limited.read_until(b'\n', &mut data).await?;
        }
        false => {
            data.reserve(PIECE);
            input.read_buf(&mut data).await?;
        }
    }
    Ok(data.into())
}

fn print(data: &[u8]) -> Done {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::Unread),
        written => Ok(written.at("print", "standard output")?),
    }
}
