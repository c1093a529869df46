//! Telling the service manager how the server is, as sd_notify(3) does.
//!
//! A datagram of lines `NAME=value` goes to the socket that NOTIFY_SOCKET names, a path or, after
//! an `@`, an abstract name. Whoever is not started by a service manager has no such socket, and
//! nothing is sent. A manager that does not listen is logged, and keeps nobody from serving.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the service manager listens.
#[derive(Debug, Clone, Default)]
pub(super) struct Manager {
    socket: Option<OsString>,
}

impl Manager {
    /// The one that started this process, if one did.
    pub(super) fn of_this_process() -> Manager {
        Manager {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()),
        }
    }

    /// What the server is doing, for people.
    pub(super) fn status(&self, text: &str) {
        self.send(&status_line(text));
    }

    /// The mount is live.
    pub(super) fn ready(&self, text: &str) {
        self.send(&format!("READY=1\n{}", status_line(text)));
    }

    /// The mount is gone, and the process is about to end.
    pub(super) fn stopping(&self, text: &str) {
        self.send(&format!("STOPPING=1\n{}", status_line(text)));
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = send(socket, message) {
            let shown = socket.display();
            log::warn!("the service manager at {shown} was not told: {error}");
        }
    }
}

/// A line break would end the value and begin another one.
fn status_line(text: &str) -> String {
    format!("STATUS={}\n", text.replace(char::is_control, "?"))
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    let datagram = UnixDatagram::unbound()?;
    // A manager whose queue is full must not hold up a mount.
    datagram.set_nonblocking(true)?;
    datagram
        .send_to_addr(message.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buf = [0; 4096];
        let len = socket.recv(&mut buf).unwrap();
        String::from_utf8(buf[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_is_told_through_its_path_or_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("mendfs-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, listener) in [
            (path.into_os_string(), &by_path),
            (OsString::from(format!("@{name}")), &by_name),
        ] {
            let socket = Some(manager);
            let manager = Manager { socket };
            manager.ready("serving\nREADY=0");
            assert_eq!(heard(listener), "READY=1\nSTATUS=serving?READY=0\n");
            manager.stopping("closing");
            assert_eq!(heard(listener), "STOPPING=1\nSTATUS=closing\n");
        }
    }

    #[test]
    fn no_manager_and_a_deaf_one_keep_nobody_from_serving() {
        Manager::default().ready("nobody listens");
        for name in ["/nowhere/at/all", "@mendfs-nobody", "vsock:2:1"] {
            let socket = Some(OsString::from(name));
            Manager { socket }.ready("nobody listens");
        }
    }
}
