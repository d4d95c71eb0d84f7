//! A client as small as it can be: one blocking socket, simple replies.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::PATIENCE;
use crate::frontend::nbd::proto::{self, command, option, rep};

#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    cookie: u64,
}

/// The error number of a reply.
pub(super) type Errno = u32;

impl Client {
    /// Connects and chooses the volume.
    pub(super) fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(&proto::OPTION_MAGIC.to_be_bytes()).unwrap();
        stream.write_all(&option::GO.to_be_bytes()).unwrap();
        stream.write_all(&6u32.to_be_bytes()).unwrap();
        stream.write_all(&[0; 6]).unwrap();
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).unwrap();
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let len = u32::from_be_bytes(head[16..20].try_into().unwrap());
            stream.read_exact(&mut vec![0; usize::try_from(len).unwrap()]).unwrap();
            if kind == rep::ACK {
                return Self { stream, cookie: 0 };
            }
            assert_eq!(kind, rep::INFO);
        }
    }

    /// Sends a request without waiting; returns its name.
    pub(super) fn send(&mut self, command: u16, flags: u16, offset: u64, len: usize, data: &[u8]) -> u64 {
        self.send_behind(Vec::new(), command, flags, offset, len, data)
    }

    /// Sends a flush and, in the same breath, a write of which only the first part of the payload follows. Once the flush
    /// is answered, the server has seen both.
    pub(super) fn begin_write(&mut self, offset: u64, len: usize, first: &[u8]) {
        self.cookie += 1;
        let flush = self.request(command::FLUSH, 0, 0, 0);
        self.send_behind(flush, command::WRITE, 0, offset, len, first);
        assert_eq!(self.reply().unwrap().1, 0);
    }

    fn send_behind(
        &mut self,
        mut bytes: Vec<u8>,
        command: u16,
        flags: u16,
        offset: u64,
        len: usize,
        data: &[u8],
    ) -> u64 {
        self.cookie += 1;
        bytes.extend(self.request(command, flags, offset, len));
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
        self.cookie
    }

    fn request(&self, command: u16, flags: u16, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
        bytes
    }

    /// The next reply: its name and error. `None`: the connection has ended.
    pub(super) fn reply(&mut self) -> Option<(u64, Errno)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).ok()?;
        assert_eq!(head[..4], proto::SIMPLE_REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        Some((u64::from_be_bytes(head[8..].try_into().unwrap()), error))
    }

    fn call(&mut self, command: u16, flags: u16, offset: u64, len: usize, data: &[u8]) -> Result<(), Errno> {
        let cookie = self.send(command, flags, offset, len, data);
        match self.reply() {
            Some((found, 0)) if found == cookie => Ok(()),
            Some((found, error)) if found == cookie => Err(error),
            other => panic!("expected the reply to {cookie}, found {other:?}"),
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.call(command::WRITE, 0, offset, data.len(), data)
    }
    pub(super) fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.call(command::WRITE, proto::command_flag::FUA, offset, data.len(), data)
    }
    pub(super) fn flush(&mut self) -> Result<(), Errno> {
        self.call(command::FLUSH, 0, 0, 0, &[])
    }
    pub(super) fn trim_fua(&mut self, offset: u64, len: usize) -> Result<(), Errno> {
        self.call(command::TRIM, proto::command_flag::FUA, offset, len, &[])
    }
    pub(super) fn write_zeroes(&mut self, offset: u64, len: usize) -> Result<(), Errno> {
        self.call(command::WRITE_ZEROES, 0, offset, len, &[])
    }
    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.call(command::READ, 0, offset, len, &[])?;
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).unwrap();
        Ok(data)
    }
    /// Whether the server has closed the connection; waits for it.
    pub(super) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
    /// Sends the rest of a payload.
    pub(super) fn finish(&mut self, rest: &[u8]) {
        self.stream.write_all(rest).unwrap();
    }
    pub(super) fn garbage(&mut self) {
        self.stream.write_all(&[0x5a; 4096]).unwrap();
    }
}
