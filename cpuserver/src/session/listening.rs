//! The sockets of one command on which connections are taken for its caller.
//!
//! Made by the job's task: those of paths by init, in the job's root, those of ports by this process. The session has
//! them while its command runs; whoever opens the file `accept` takes one connection.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;

use p9::Errno;
use p9::dial::{Address, HostPort};
use tokio::net::{TcpListener, UnixListener};

use crate::connect::Socket;

/// Those of one command.
pub(crate) struct Listening(Vec<(Address, Listener)>);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// Those of `addresses` that are ports. Errors: one that cannot be had, in words.
    pub(crate) async fn of_ports(addresses: &[Address]) -> Result<Self, String> {
        let mut all = Vec::new();
        for address in addresses {
            if let Address::Tcp(at) = address {
                let listener = TcpListener::bind((at.host.as_str(), at.port)).await;
                let listener =
                    listener.map_err(|error| format!("listen: {at}: {}; try: ss -ltn, there", Errno::from(error)))?;
                all.push((address.clone(), Listener::Tcp(listener)));
            }
        }
        Ok(Self(all))
    }

    /// With `sockets`, which init has made of those of `addresses` that are paths, in this order.
    pub(crate) fn with_paths(mut self, addresses: &[Address], sockets: Vec<OwnedFd>) -> Result<Self, Errno> {
        let paths = addresses.iter().filter(|address| matches!(address, Address::Unix(_)));
        for (address, socket) in paths.zip(sockets) {
            let listener = UnixListener::from_std(StdUnixListener::from(socket))?;
            self.0.push((address.clone(), Listener::Unix(listener)));
        }
        Ok(self)
    }

    /// The next connection to `address`. Errors: `ENOENT` if nothing listens there.
    pub(crate) async fn accept(&self, address: &Address) -> Result<Socket, Errno> {
        let found = self.0.iter().find(|(at, _)| at == address);
        match &found.ok_or(Errno::ENOENT)?.1 {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Listener::Unix(listener) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }

    /// The addresses, one a line; a port that was left open is the one that it has, after what was asked for.
    pub(crate) fn text(&self) -> String {
        let line = |(address, listener): &(Address, Listener)| match (address, listener) {
            (Address::Tcp(HostPort { host, port: 0 }), Listener::Tcp(listener)) => {
                let port = listener.local_addr().map_or(0, |at| at.port());
                format!("{address} tcp!{host}!{port}\n")
            }
            _ => format!("{address}\n"),
        };
        self.0.iter().map(line).collect()
    }
}
