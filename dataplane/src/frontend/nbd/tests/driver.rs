//! The whole frontend over real sockets: a client speaks to a disk in memory through the data thread's driver.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::decoder::decode;
use super::disk::{Disk, Outcome};
use super::rig::header;
use crate::frontend::nbd::proto::{OptionHeader, command, option};
use crate::frontend::nbd::{Client, ClientLimits, DriverTransport, ExportInfo, negotiate};
use crate::frontend::{PartResult, Submit};
use crate::io::{Completion, ConnId, Driver, DriverConfig, Owner, Pool, PoolConfig};

const SIZE: usize = 8 << 20;

struct Server {
    driver: Driver,
    conn: ConnId,
    owner: Owner,
    client: Client,
    disk: Disk,
    out: VecDeque<Submit>,
}

impl Server {
    /// Handshakes on this thread, then hands the socket to a driver, as the control thread does.
    fn accept(stream: UnixStream) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let export =
            ExportInfo { name: "demo".into(), description: "a test".into(), size_bytes: SIZE as u64 };
        let (negotiated, stream) = runtime.block_on(async {
            stream.set_nonblocking(true).unwrap();
            let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
            let negotiated = negotiate(&mut stream, &export).await.unwrap();
            (negotiated, stream.into_std().unwrap())
        });
        let pool = Pool::new(PoolConfig { small: 16, medium: 8, large: 8 }).unwrap();
        let mut driver = Driver::new(DriverConfig::default(), pool).unwrap();
        let conn = driver.add_conn(stream.into()).unwrap();
        let client = Client::new(negotiated?, export.size_bytes, ClientLimits::default());
        let owner = Owner::new(0).unwrap();
        Some(Self { driver, conn, owner, client, disk: Disk::new(SIZE), out: VecDeque::new() })
    }

    fn run(mut self) -> Disk {
        let mut completions = Vec::new();
        loop {
            completions.clear();
            self.driver.turn(None, &mut completions).unwrap();
            for completion in completions.drain(..) {
                let mut t = DriverTransport { driver: &mut self.driver, conn: self.conn, owner: self.owner };
                match completion {
                    Completion::Received { .. } => {
                        self.client.on_received(Duration::ZERO, &mut t, &mut self.out).unwrap()
                    }
                    Completion::ReceivedInto { buf, .. } => {
                        self.client.on_received_into(buf, Duration::ZERO, &mut t, &mut self.out).unwrap();
                    }
                    Completion::Sent { .. } => {}
                    Completion::Failed { conn, .. } => self.driver.close(conn),
                    Completion::Closed { .. } => return self.disk,
                    Completion::Wake | Completion::Ended { .. } | Completion::File { .. } => {
                        panic!("nobody asked for it")
                    }
                }
            }
            self.serve();
            if self.client.disconnecting() {
                self.driver.close_after_sends(self.conn);
            }
        }
    }

    fn serve(&mut self) {
        let mut t = DriverTransport { driver: &mut self.driver, conn: self.conn, owner: self.owner };
        loop {
            while let Some(submit) = self.out.pop_front() {
                let part = submit.part;
                let (outcome, _) = self.disk.execute(submit);
                let result = match outcome {
                    Outcome::Done => PartResult::Done,
                    Outcome::Data(buf) => PartResult::Data(buf),
                    Outcome::Extents(ref extents) => PartResult::Extents(extents),
                };
                self.client.on_complete(part, result, Duration::ZERO, &mut t);
            }
            if self.client.starved() {
                self.client.on_received(Duration::ZERO, &mut t, &mut self.out).unwrap();
            }
            if self.out.is_empty() {
                return;
            }
        }
    }
}

#[test]
fn a_client_writes_and_reads_back_over_a_socket() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || Server::accept(ours).unwrap().run().bytes);
    let mut socket = theirs;
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    socket.write_all(&[0, 0, 0, 3]).unwrap();
    socket.write_all(&OptionHeader { option: option::STRUCTURED_REPLY, len: 0 }.encode()).unwrap();
    socket.write_all(&OptionHeader { option: option::EXPORT_NAME, len: 0 }.encode()).unwrap();
    let mut answers = [0; 20 + 10];
    socket.read_exact(&mut answers).unwrap();

    let len = 5_000_000;
    let payload: Vec<u8> = (0..len).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let requests = [
        header(command::WRITE, 0, 1, 1234, len),
        header(command::FLUSH, 0, 2, 0, 0),
        header(command::READ, 0, 3, 1234, len),
        header(command::DISC, 0, 4, 0, 0),
    ];
    // Replies are read meanwhile, as neither side may wait for the other for ever.
    let mut reader = socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut sent = Vec::new();
        reader.read_to_end(&mut sent).map(|_| sent)
    });
    for request in &requests {
        socket.write_all(&request.encode()).unwrap();
        if request.command == command::WRITE {
            socket.write_all(&payload).unwrap();
        }
    }
    let sent = reader.join().unwrap().unwrap();
    let replies = decode(&sent, &requests, true);
    assert_eq!([1, 2, 3].map(|cookie| replies[&cookie].error), [0; 3]);
    assert!(replies[&3].bytes() == payload);
    let bytes = server.join().unwrap();
    assert!(bytes[1234..1234 + payload.len()] == payload);
}
