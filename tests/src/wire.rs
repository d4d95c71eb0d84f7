//! The engine's side of a data connection's handshake, for tests in which the engine is not an honest or not the
//! newest one. The bytes are the product's own: what is under test is the replica that answers.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use holdfast_dataplane::wire::handshake::{
    Challenge, Hello, MessageKind, PREFIX_BYTES, Prefix, Proof, Refused, Role, Transcript, Welcome, frame,
};
use holdfast_dataplane::wire::{FEATURES_KNOWN, HEADER_BYTES, Header, VERSION_MAX, VERSION_MIN};
use holdfast_proto::ids::{BootId, Epoch, Generation, InstanceUuid, ProcessUuid, ReplicaId};

use crate::cluster::Cluster;
use crate::records;

const DEADLINE: Duration = Duration::from_secs(30);

/// Who a data connection claims to be.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The first message, but for its nonce.
    pub hello: Hello,
    /// The volume's key, or another.
    pub key: [u8; 32],
}

/// How a replica answered.
#[derive(Debug)]
pub enum Answer {
    /// It takes this engine; frames may follow.
    Welcome(Box<Welcome>, TcpStream),
    /// It does not, and says why.
    Refused(Refused),
    /// It closed the connection without a word.
    Dropped,
}

impl Claim {
    /// What the volume's present engine would say to a replica, with another process's UUID.
    ///
    /// # Panics
    /// When the records do not hold what they should.
    #[must_use]
    pub fn of_current_engine(cluster: &Cluster, volume: &str, replica: u32) -> Self {
        let shown = cluster.volume(volume);
        let record = records::record(&cluster.data_dir(), volume);
        let status = &record["status"];
        let (key_id, key) = records::key(&cluster.data_dir(), &shown);
        let text = |name: &str| status[name].as_str().unwrap_or_else(|| panic!("no {name} in {record}"));
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("/proc is mounted");
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES_KNOWN,
            payload_bytes_max: 262_144,
            volume: shown.id().parse().expect("a volume id"),
            replica: ReplicaId(replica),
            key_id,
            role: Role::Engine,
            lineage: text("lineage").parse().expect("a lineage"),
            generation: Generation(shown.generation()),
            engine: text("engine_uuid").parse().expect("an engine's UUID"),
            epoch: Epoch(shown.epoch()),
            process: ProcessUuid::random(),
            boot: boot.trim().parse::<BootId>().expect("a boot id"),
            nonce: [7; 32],
        };
        Self { hello, key }
    }
    /// The same, as another engine of a generation that much later.
    #[must_use]
    pub fn later(mut self, by: u64) -> Self {
        self.hello.generation = Generation(self.hello.generation.0 + by);
        self.hello.engine = InstanceUuid::random();
        self
    }

    /// Says it to the replica at `address`.
    ///
    /// # Errors
    /// When the replica cannot be reached, or does not answer as the protocol says.
    pub fn say(&self, address: &str) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(&frame(MessageKind::Hello, &self.hello.encode()))?;
        let challenge = match receive(&mut stream)? {
            Some((prefix, body)) if prefix.is(MessageKind::Challenge) => {
                Challenge::decode(&body).map_err(io::Error::other)?
            }
            Some((_, body)) => return Refused::decode(&body).map(Answer::Refused).map_err(io::Error::other),
            None => return Ok(Answer::Dropped),
        };
        let terms = challenge.terms(&self.hello).map_err(io::Error::other)?;
        let proof = Proof::of(&self.key, &self.hello, &challenge);
        stream.write_all(&frame(MessageKind::Proof, &proof.encode()))?;
        let transcript = Transcript { hello: self.hello.clone(), challenge, proof };
        let Some((prefix, body)) = receive(&mut stream)? else { return Ok(Answer::Dropped) };
        let kind = if prefix.is(MessageKind::Welcome) { MessageKind::Welcome } else { MessageKind::Refused };
        // One that does not believe the proof says so without a MAC.
        let opened = transcript.open(&self.key, kind, &body);
        let body = match (opened, kind) {
            (Ok(opened), _) if terms.is_sealed() => opened,
            (Err(e), MessageKind::Welcome) if terms.is_sealed() => return Err(io::Error::other(e)),
            _ => &body,
        };
        if kind == MessageKind::Refused {
            return Refused::decode(body).map(Answer::Refused).map_err(io::Error::other);
        }
        let (welcome, _) = Welcome::decode(body, &terms, &transcript.challenge).map_err(io::Error::other)?;
        Ok(Answer::Welcome(Box::new(welcome), stream))
    }
}

/// One handshake message; none where the connection was closed instead.
///
/// # Errors
/// When it is none.
pub fn receive(stream: &mut impl Read) -> io::Result<Option<(Prefix, Vec<u8>)>> {
    let mut head = [0; PREFIX_BYTES];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(e) if is_closed(&e) => return Ok(None),
        Err(e) => return Err(e),
    }
    let prefix = Prefix::decode(&head).map_err(io::Error::other)?;
    let mut body = vec![0; prefix.body_bytes()];
    stream.read_exact(&mut body)?;
    Ok(Some((prefix, body)))
}

/// One frame; none where the connection was closed instead.
///
/// # Errors
/// When it is no frame.
pub fn receive_frame(stream: &mut TcpStream) -> io::Result<Option<(Header, Vec<u8>)>> {
    let mut head = [0; HEADER_BYTES];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(e) if is_closed(&e) => return Ok(None),
        Err(e) => return Err(e),
    }
    let header = Header::decode(&head)
        .map_err(io::Error::other)?
        .ok_or_else(|| io::Error::other("a whole header is enough"))?;
    let mut payload = vec![0; usize::try_from(header.length).map_err(io::Error::other)?];
    stream.read_exact(&mut payload)?;
    Ok(Some((header, payload)))
}

/// Whether an error means that the other side closed.
#[must_use]
pub fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
