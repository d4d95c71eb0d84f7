//! The network: connections that deliver in order, late, cut off, damaged, or not at all.
//!
//! A connection has two lanes. What is sent arrives in the order of its lane; lanes do not wait for each other. A lane
//! whose direction is partitioned stands still: its messages arrive when the partition heals, unless the connection ended.

use std::collections::VecDeque;

use holdfast_dataplane::wire::HEADER_BYTES;
use holdfast_dataplane::wire::handshake::{Hello, Refused, Welcome};
use holdfast_proto::ids::BootId;

use super::queue::{MS, SEC, Time};
use super::world::{Event, World};

/// What stands behind a header.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    None,
    /// Blocks by their units' stamps, and a checksum of them in place of one of the bytes.
    Units(Vec<u64>, u32),
    /// As on the wire.
    Bytes(Vec<u8>),
}

/// What is on its way.
#[derive(Debug)]
pub(super) enum Message {
    Hello(Box<Hello>),
    Welcome(Box<Welcome>, BootId),
    Refused(Box<Refused>),
    Frame([u8; HEADER_BYTES], Payload),
    /// The beginning of a header: the rest never comes.
    Cut([u8; HEADER_BYTES], usize),
    /// Nobody listens there.
    NobodyThere,
    /// The sender's end is closed.
    Close,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    queue: VecDeque<Message>,
    last: Time,
    stalled: usize,
}

/// A connection of an engine to a replica.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) engine: usize,
    pub(super) replica: usize,
    /// The process of the replica that it knocks at.
    pub(super) run: u64,
    pub(super) engine_open: bool,
    pub(super) replica_open: bool,
    pub(super) to_replica: Lane,
    pub(super) to_engine: Lane,
    /// Arrived at the replica before its data thread had the connection.
    pub(super) early: VecDeque<Message>,
}

/// How the network is at present.
#[derive(Debug)]
pub(super) struct Net {
    /// `blocked[from][to]`.
    blocked: Vec<Vec<bool>>,
    /// At most this much on the way, usually.
    pub(super) latency: Time,
    /// One in so many messages is a thousand times slower.
    pub(super) slow_one_in: u64,
    /// One in so many messages is damaged.
    pub(super) damage_one_in: u64,
}

impl Net {
    pub(super) fn new(nodes: usize) -> Self {
        Self { blocked: vec![vec![false; nodes]; nodes], latency: 300, slow_one_in: 0, damage_one_in: 0 }
    }
    pub(super) fn is_blocked(&self, from: usize, to: usize) -> bool {
        from != to && self.blocked[from][to]
    }
}

impl World {
    /// A connection begins with the engine's hello.
    pub(super) fn open_conn(&mut self, engine: usize, replica: usize, run: u64, hello: Hello) -> usize {
        let conn = self.conns.len();
        self.conns.push(Conn {
            engine,
            replica,
            run,
            engine_open: true,
            replica_open: false,
            to_replica: Lane::default(),
            to_engine: Lane::default(),
            early: VecDeque::new(),
        });
        self.send_to_replica(conn, Message::Hello(Box::new(hello)));
        conn
    }

    fn delay(&mut self) -> Time {
        let random = &mut self.random;
        if random.one_in(self.net.slow_one_in) {
            return random.between(MS, SEC);
        }
        20 + random.below(self.net.latency)
    }

    pub(super) fn send_to_replica(&mut self, conn: usize, message: Message) {
        let delay = self.delay();
        let lane = &mut self.conns[conn].to_replica;
        lane.last = lane.last.max(self.queue.now() + delay);
        lane.queue.push_back(message);
        self.queue.at(lane.last, Event::Arrives { conn, at_replica: true });
    }

    pub(super) fn send_to_engine(&mut self, conn: usize, message: Message) {
        let delay = self.delay();
        let lane = &mut self.conns[conn].to_engine;
        lane.last = lane.last.max(self.queue.now() + delay);
        lane.queue.push_back(message);
        self.queue.at(lane.last, Event::Arrives { conn, at_replica: false });
    }

    /// The nodes of a connection: the engine's, the replica's.
    fn ends(&self, conn: usize) -> (usize, usize) {
        let c = &self.conns[conn];
        (self.engines[c.engine].node, self.replicas[c.replica].node)
    }

    pub(super) fn arrives(&mut self, conn: usize, at_replica: bool) {
        let (engine_node, replica_node) = self.ends(conn);
        let (from, to) = if at_replica { (engine_node, replica_node) } else { (replica_node, engine_node) };
        let blocked = self.net.is_blocked(from, to);
        let c = &mut self.conns[conn];
        let lane = if at_replica { &mut c.to_replica } else { &mut c.to_engine };
        if blocked {
            lane.stalled += 1;
            return;
        }
        let Some(mut message) = lane.queue.pop_front() else { return };
        if !self.nodes[to].up {
            return;
        }
        self.damage(&mut message);
        if at_replica {
            self.arrives_at_replica(conn, message)
        } else {
            self.arrives_at_engine(conn, message)
        }
    }

    fn damage(&mut self, message: &mut Message) {
        if !self.random.one_in(self.net.damage_one_in) {
            return;
        }
        match message {
            Message::Frame(bytes, Payload::None) => {
                bytes[self.random.index(HEADER_BYTES)] ^= 1 << self.random.below(8);
            }
            Message::Frame(_, Payload::Units(units, _)) => {
                let at = self.random.index(units.len());
                units[at] ^= 1 << self.random.below(64);
            }
            Message::Frame(_, Payload::Bytes(bytes)) => {
                let at = self.random.index(bytes.len());
                bytes[at] ^= 1 << self.random.below(8);
            }
            // The handshake is proven by its key: damage ends it.
            Message::Hello(_) | Message::Welcome(..) | Message::Refused(_) => *message = Message::Close,
            Message::Cut(..) | Message::NobodyThere | Message::Close => {}
        }
    }

    /// The engine's end is closed; the other hears of it, or does not.
    pub(super) fn close_engine_end(&mut self, conn: usize) {
        if std::mem::take(&mut self.conns[conn].engine_open) {
            self.say_goodbye(conn, true);
        }
    }

    /// The replica's end is closed. `quietly`: its node has no time to say so.
    pub(super) fn close_replica_end(&mut self, conn: usize, quietly: bool) {
        if std::mem::take(&mut self.conns[conn].replica_open) && !quietly {
            self.say_goodbye(conn, false);
        }
    }

    fn say_goodbye(&mut self, conn: usize, to_replica: bool) {
        // What was sent before arrives, unless a reset overtakes it.
        if self.random.one_in(3) {
            self.overtaken(conn, to_replica);
        }
        if to_replica {
            self.send_to_replica(conn, Message::Close);
        } else {
            self.send_to_engine(conn, Message::Close);
        }
    }

    /// Only a part of what is on its way in a lane arrives; the last of it is cut within its header.
    fn overtaken(&mut self, conn: usize, to_replica: bool) {
        let c = &mut self.conns[conn];
        let lane = if to_replica { &mut c.to_replica } else { &mut c.to_engine };
        let keep = self.random.index(lane.queue.len() + 1);
        let cut = lane.queue.get(keep).and_then(|message| match message {
            Message::Frame(bytes, _) => Some(*bytes),
            Message::Hello(_)
            | Message::Welcome(..)
            | Message::Refused(_)
            | Message::Cut(..)
            | Message::NobodyThere
            | Message::Close => None,
        });
        lane.queue.truncate(keep);
        if let Some(bytes) = cut {
            lane.queue.push_back(Message::Cut(bytes, self.random.index(HEADER_BYTES)));
        }
    }

    /// The connection breaks in the middle, for both ends, at once or one after the other.
    pub(super) fn reset(&mut self, conn: usize) {
        let c = &self.conns[conn];
        if !c.engine_open && !c.replica_open {
            return;
        }
        self.overtaken(conn, true);
        self.overtaken(conn, false);
        self.send_to_replica(conn, Message::Close);
        self.send_to_engine(conn, Message::Close);
    }

    /// The way from one node to another is cut, or open again.
    pub(super) fn block(&mut self, from: usize, to: usize, blocked: bool) {
        if self.net.blocked[from][to] == blocked {
            return;
        }
        trace!(self, "way {from} -> {to} {}", if blocked { "cut" } else { "open" });
        self.net.blocked[from][to] = blocked;
        if blocked {
            return;
        }
        for conn in 0..self.conns.len() {
            let (engine_node, replica_node) = self.ends(conn);
            for at_replica in [true, false] {
                let same = if at_replica {
                    (engine_node, replica_node) == (from, to)
                } else {
                    (replica_node, engine_node) == (from, to)
                };
                let c = &mut self.conns[conn];
                let lane = if at_replica { &mut c.to_replica } else { &mut c.to_engine };
                if same {
                    for _ in 0..std::mem::take(&mut lane.stalled) {
                        let after = 100 + self.random.below(200 * MS);
                        self.queue.after(after, Event::Arrives { conn, at_replica });
                    }
                }
            }
        }
    }

    /// All ways are open.
    pub(super) fn open_all_ways(&mut self) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                self.block(from, to, false);
            }
        }
    }
}

/// The checksum that stands for one of the blocks.
pub(super) fn units_crc(units: &[u64]) -> u32 {
    let mut sum = 0x811c_9dc5_u64;
    for unit in units {
        sum = (sum ^ unit).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    let [a, b, c, d, ..] = (sum ^ (sum >> 32)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
