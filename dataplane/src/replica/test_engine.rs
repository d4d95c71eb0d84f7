//! The engine's end of a data connection, as small as it can be: one blocking socket.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use holdfast_proto::ids::Generation;

use crate::units::to_usize;
use crate::wire::{HEADER_BYTES, Header, Kind, Status};

/// No test waits longer for an answer; none depends on how long it took.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct TestEngine {
    pub(super) stream: TcpStream,
    pub(super) generation: Generation,
    sequence: u64,
}

impl TestEngine {
    pub(super) fn new(stream: TcpStream, generation: u64) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, generation: Generation(generation), sequence: 0 }
    }

    pub(super) fn header(&mut self, kind: Kind, offset: u64, extent: u64) -> Header {
        self.sequence += 1;
        Header {
            offset,
            extent,
            sequence: self.sequence,
            ..Header::request(kind, 1000 + self.sequence, self.generation.0)
        }
    }

    pub(super) fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
        let payload_crc = if payload.is_empty() { 0 } else { crc32fast::hash(payload) };
        let length = u32::try_from(payload.len()).unwrap();
        let mut bytes = Header { length, payload_crc, ..header }.encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.stream.write_all(&Self::frame(header, payload)).unwrap();
    }

    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut bytes = [0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        let header = Header::decode(&bytes).unwrap().unwrap();
        let mut payload = vec![0; to_usize(u64::from(header.length))];
        self.stream.read_exact(&mut payload).unwrap();
        header.verify(&payload).unwrap();
        assert!(header.reply);
        (header, payload)
    }

    pub(super) fn call(&mut self, header: Header, payload: &[u8]) -> (Header, Vec<u8>) {
        self.send(header, payload);
        let (reply, bytes) = self.receive();
        assert_eq!((reply.tag, reply.sequence, reply.kind), (header.tag, header.sequence, header.kind));
        (reply, bytes)
    }

    pub(super) fn write(&mut self, offset: u64, payload: &[u8], flags: u16) -> Status {
        let header = Header { flags, ..self.header(Kind::Write, offset, 0) };
        self.call(header, payload).0.status
    }
    pub(super) fn range(&mut self, kind: Kind, offset: u64, len: u64, flags: u16) -> (Header, Vec<u8>) {
        let header = Header { flags, ..self.header(kind, offset, len) };
        self.call(header, &[])
    }
    pub(super) fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let (reply, bytes) = self.range(Kind::Read, offset, len, 0);
        assert_eq!(reply.status, Status::Ok);
        bytes
    }
    pub(super) fn flush(&mut self) -> Status {
        self.range(Kind::Flush, 0, 0, 0).0.status
    }

    /// Reads to the end of the stream, however it ends.
    pub(super) fn until_closed(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
        bytes
    }
}
