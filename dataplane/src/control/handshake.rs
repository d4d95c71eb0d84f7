//! Both sides of the data protocol's handshake over tokio TCP, with deadlines and bounded reads. The decisions are
//! elsewhere: messages in [`crate::wire::handshake`], whether to take an engine in the replica's core.
//!
//! Reads are exact, so that the first byte behind the handshake is still in the socket when it moves to the data
//! thread. Cancelling a handshake drops its connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use holdfast_proto::ids::{Generation, InstanceUuid, ReplicaId, VolumeId};
use holdfast_proto::pb::instance as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::error::Error;
use crate::units::PART_BYTES_MAX;
use crate::wire::handshake::{
    About, Challenge, HandshakeError, Hello, MessageKind, PREFIX_BYTES, Prefix, Proof, RefusalKind, Refused,
    Terms, Transcript, Welcome, frame,
};

/// How long an unauthenticated peer may take for its part.
pub const PEER_DEADLINE: Duration = Duration::from_secs(5);
/// Of that, for its first message, which it can send at once: as long as a few lost packets take.
const HELLO_WITHIN: Duration = Duration::from_secs(2);
/// How long a refused peer may take to hear it.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);
/// What a refused peer may still have under way: read and dropped, so that the refusal is not lost in a reset.
const FAREWELL_BYTES_MAX: usize = 64 * 1024;

/// A volume's key, which proves that a peer belongs to the volume. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeKey {
    /// Which key of the volume.
    pub id: u64,
    /// The key.
    pub secret: [u8; 32],
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKey {{ id: {}, .. }}", self.id)
    }
}

impl TryFrom<&pb::VolumeKey> for VolumeKey {
    type Error = Error;
    fn try_from(key: &pb::VolumeKey) -> Result<Self, Error> {
        let secret = key
            .key
            .as_slice()
            .try_into()
            .map_err(|_| Error::invalid("key", "32 bytes", format!("{} bytes", key.key.len())))?;
        Ok(Self { id: key.key_id, secret })
    }
}

/// 32 random bytes.
///
/// # Panics
/// When the kernel has no random numbers, which it always has once booted.
#[must_use]
pub fn nonce() -> [u8; 32] {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).expect("the kernel's random source");
    nonce
}

/// Why a handshake with a replica did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or the connection broke.
    #[error("not reachable: {0}")]
    Unreachable(#[from] io::Error),
    /// It said no.
    #[error("refused ({:?}): {}", .0.kind, .0.reason)]
    Refused(Refused),
    /// It spoke something else, or does not have the key.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It did not answer in time.
    #[error("no answer in time")]
    TimedOut,
}

async fn read_prefix(stream: &mut TcpStream) -> Result<Prefix, ConnectError> {
    let mut bytes = [0; PREFIX_BYTES];
    stream.read_exact(&mut bytes).await?;
    Ok(Prefix::decode(&bytes)?)
}

async fn read_body(
    stream: &mut TcpStream,
    prefix: Prefix,
    expected: MessageKind,
) -> Result<Vec<u8>, ConnectError> {
    // Bounded by Prefix::decode.
    let mut body = vec![0; prefix.body_bytes()];
    stream.read_exact(&mut body).await?;
    prefix.check(expected, &body)?;
    Ok(body)
}

/// A socket that the data thread can use: blocking, because a ring polls by itself and would otherwise report EAGAIN.
fn into_fd(stream: TcpStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

/// A replica that has taken the engine.
#[derive(Debug)]
pub struct Connected {
    /// For the data thread.
    pub socket: OwnedFd,
    /// What was agreed on.
    pub terms: Terms,
    /// Its state.
    pub welcome: Welcome,
    /// Its process.
    pub about: About,
}

/// The engine's side: connects, proves the key both ways, and waits for the replica's word. `hello.nonce` is replaced by
/// a fresh one. The replica may take as long as its fence takes (older I/O must end): choose `timeout` for that.
///
/// # Errors
/// See [`ConnectError`]. Only a peer that has proven the key is believed when it says "fenced", and from version 3 on
/// only under the MAC of this handshake.
pub async fn connect(
    address: SocketAddr,
    key: &VolumeKey,
    mut hello: Hello,
    timeout: Duration,
) -> Result<Connected, ConnectError> {
    hello.nonce = nonce();
    hello.key_id = key.id;
    let shake = async {
        let stream = super::tcp::connect(address).await?;
        shake(stream, key, hello).await
    };
    tokio::time::timeout(timeout, shake).await.map_err(|_| ConnectError::TimedOut)?
}

async fn shake(mut stream: TcpStream, key: &VolumeKey, hello: Hello) -> Result<Connected, ConnectError> {
    stream.set_nodelay(true)?;
    stream.write_all(&frame(MessageKind::Hello, &hello.encode())).await?;

    let prefix = read_prefix(&mut stream).await?;
    if prefix.is(MessageKind::Refused) {
        let refused = Refused::decode(&read_body(&mut stream, prefix, MessageKind::Refused).await?)?;
        // A fenced engine stops for good: nobody without the key may bring that about.
        if refused.kind == RefusalKind::Fenced {
            return Err(HandshakeError::Proof.into());
        }
        return Err(ConnectError::Refused(refused));
    }
    let challenge = Challenge::decode(&read_body(&mut stream, prefix, MessageKind::Challenge).await?)?;
    challenge.verify(&key.secret, &hello)?;
    let terms = challenge.terms(&hello)?;
    let proof = Proof::of(&key.secret, &hello, &challenge);
    stream.write_all(&frame(MessageKind::Proof, &proof.encode())).await?;
    let transcript = Transcript { hello, challenge, proof };

    let prefix = read_prefix(&mut stream).await?;
    let kind = if prefix.is(MessageKind::Refused) { MessageKind::Refused } else { MessageKind::Welcome };
    let sealed = read_body(&mut stream, prefix, kind).await?;
    let body = if terms.is_sealed() { transcript.open(&key.secret, kind, &sealed)? } else { &sealed };
    if kind == MessageKind::Refused {
        return Err(ConnectError::Refused(Refused::decode(body)?));
    }
    let (welcome, about) = Welcome::decode(body, &terms, &transcript.challenge)?;
    Ok(Connected { socket: into_fd(stream)?, terms, welcome, about })
}

/// Who the accepting side is.
#[derive(Debug, Clone)]
pub struct Acceptor {
    /// Its volume.
    pub volume: VolumeId,
    /// Its number.
    pub replica: ReplicaId,
    /// The volume's key.
    pub key: VolumeKey,
    /// Its process.
    pub about: About,
}

/// A peer that has proven the key and waits for [`Authenticated::welcome`] or [`Authenticated::refuse`]. Dropping it
/// closes the connection.
#[derive(Debug)]
pub struct Authenticated {
    stream: TcpStream,
    transcript: Transcript,
    terms: Terms,
    key: VolumeKey,
    about: About,
}

fn refusal(kind: RefusalKind, reason: String) -> Refused {
    // Nothing of the replica's state goes to a peer that has not proven the key.
    Refused { kind, generation: Generation(0), engine: InstanceUuid::nil(), reason }
}

/// Tells the peer and closes. Errors are the peer's loss.
async fn farewell(mut stream: TcpStream, body: &[u8]) {
    let last_words = async {
        stream.write_all(&frame(MessageKind::Refused, body)).await?;
        stream.shutdown().await?;
        let mut dropped = 0;
        let mut bytes = [0; 1024];
        while dropped < FAREWELL_BYTES_MAX {
            match stream.read(&mut bytes).await? {
                0 => break,
                n => dropped += n,
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(FAREWELL_WITHIN, last_words).await;
}

impl Acceptor {
    /// The replica's side up to the engine's proof, within [`PEER_DEADLINE`]. A peer that fails is told why and dropped.
    ///
    /// # Errors
    /// Why it was dropped.
    pub async fn accept(&self, mut stream: TcpStream) -> Result<Authenticated, ConnectError> {
        let shake = tokio::time::timeout(PEER_DEADLINE, self.shake(&mut stream)).await;
        let failure = match shake.unwrap_or(Err(ConnectError::TimedOut)) {
            Ok((transcript, terms)) => {
                let (key, about) = (self.key.clone(), self.about.clone());
                return Ok(Authenticated { stream, transcript, terms, key, about });
            }
            Err(failure) => failure,
        };
        let refused = match &failure {
            // Nobody there to tell.
            ConnectError::Unreachable(_) => return Err(failure),
            ConnectError::Refused(refused) => refused.clone(),
            ConnectError::TimedOut => {
                refusal(RefusalKind::Version, "handshake not finished in time".to_owned())
            }
            ConnectError::Handshake(HandshakeError::Proof) => {
                refusal(RefusalKind::Identity, HandshakeError::Proof.to_string())
            }
            ConnectError::Handshake(e) => refusal(RefusalKind::Version, e.to_string()),
        };
        farewell(stream, &refused.encode()).await;
        Err(failure)
    }

    async fn shake(&self, stream: &mut TcpStream) -> Result<(Transcript, Terms), ConnectError> {
        stream.set_nodelay(true)?;
        let first = async {
            let prefix = read_prefix(stream).await?;
            read_body(stream, prefix, MessageKind::Hello).await
        };
        let first = tokio::time::timeout(HELLO_WITHIN, first).await;
        let hello = Hello::decode(&first.map_err(|_| ConnectError::TimedOut)??)?;
        let largest = u32::try_from(PART_BYTES_MAX).unwrap_or(u32::MAX);
        let terms = hello.terms(largest)?;
        self.check_identity(&hello).map_err(ConnectError::Refused)?;
        let challenge = Challenge::under(&terms, &self.about, nonce()).proven(&self.key.secret, &hello);
        stream.write_all(&frame(MessageKind::Challenge, &challenge.encode())).await?;
        let prefix = read_prefix(stream).await?;
        let proof = Proof::decode(&read_body(stream, prefix, MessageKind::Proof).await?)?;
        proof.verify(&self.key.secret, &hello, &challenge)?;
        Ok((Transcript { hello, challenge, proof }, terms))
    }

    /// Tells the peer which field differs, not our value: the peer has not proven the key.
    fn check_identity(&self, hello: &Hello) -> Result<(), Refused> {
        let differs = |what: &str, ours: &dyn fmt::Display, theirs: &dyn fmt::Display| {
            tracing::debug!("a peer asked for {what} {theirs}; this is {ours}");
            Err(refusal(RefusalKind::Identity, format!("this is not {what} {theirs}")))
        };
        if hello.volume != self.volume {
            return differs("volume", &self.volume, &hello.volume);
        }
        if hello.replica != self.replica {
            return differs("replica", &self.replica, &hello.replica);
        }
        if hello.key_id != self.key.id {
            return differs("key", &self.key.id, &hello.key_id);
        }
        Ok(())
    }
}

impl Authenticated {
    /// What the engine said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.transcript.hello
    }

    /// What was agreed on.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.terms
    }

    fn last_word(&self, kind: MessageKind, body: Vec<u8>) -> Vec<u8> {
        if self.terms.is_sealed() { self.transcript.seal(&self.key.secret, kind, body) } else { body }
    }

    /// Takes the engine; the socket is then for the data thread.
    ///
    /// # Errors
    /// When the peer is gone, or does not take the message in time.
    pub async fn welcome(mut self, welcome: &Welcome) -> io::Result<OwnedFd> {
        let body = self.last_word(MessageKind::Welcome, welcome.encode(&self.terms, &self.about));
        let message = frame(MessageKind::Welcome, &body);
        tokio::time::timeout(FAREWELL_WITHIN, self.stream.write_all(&message)).await??;
        into_fd(self.stream)
    }

    /// Sends the engine away.
    pub async fn refuse(self, refused: &Refused) {
        let body = self.last_word(MessageKind::Refused, refused.encode());
        farewell(self.stream, &body).await;
    }
}
