//! What engines send, what their clients are told, and what must hold in every state.

use super::*;
use crate::core::start::{Decision, RegistryState, decide};
use crate::wire::handshake::Welcome;
use crate::wire::header;

impl Running {
    pub(super) fn fingerprint(&self, h: &mut impl Hasher) {
        self.ended.hash(h);
        if self.ended {
            return;
        }
        self.uuid.hash(h);
        self.engine.fingerprint(self.now, h);
        for link in &self.links {
            match link {
                Link::None => h.write_u8(0),
                Link::Wanted => h.write_u8(1),
                Link::Dead => h.write_u8(2),
                Link::Up { queue, mute } => {
                    (3u8, mute).hash(h);
                    queue.iter().for_each(|frame| self.frame(frame, h));
                }
            }
        }
        if let Some((_, version, status)) = &self.ask {
            version.hash(h);
            print::status(status, h);
        }
        (&self.clients.len(), &self.buffers).hash(h);
        self.clients.iter().for_each(|(slot, (_, op))| (slot, op).hash(h));
    }

    /// A frame of a former attempt is one whose answer nobody waits for.
    fn frame(&self, frame: &Frame, h: &mut impl Hasher) {
        let header = &frame.header;
        (header.kind, header.flags, header.offset, header.extent, frame.data, &frame.bytes).hash(h);
        match &frame.update {
            Some(u) => {
                (u.view, u.configured, u.incarnation, u.revision, u.syncing, u.repaired, header.tag).hash(h);
                (u.lineage, u.keep, u.refill, u.rebased, u.adopt, u.new_history).hash(h);
            }
            None => self.engine.awaited(header.tag).hash(h),
        }
    }

    pub(super) fn wanted_generation(&self) -> holdfast_proto::ids::Generation {
        self.engine.generation()
    }
}

impl World {
    pub(super) fn send(
        &mut self,
        e: usize,
        r: usize,
        header: header::Header,
        body: Body,
    ) -> Result<(), String> {
        let running = &mut self.engines[e];
        let mut frame = Frame { header, data: [0; BLOCKS], update: None, bytes: Vec::new() };
        match body {
            Body::None => {}
            Body::View(update) => frame.update = Some(update),
            Body::Bytes(bytes) => frame.bytes = bytes,
            Body::Buffer { op, .. } => {
                frame.data = *running.buffers.get(&op.slot).ok_or("a frame without a buffer")?;
            }
        }
        // I7. A target says where it has data, and nothing else is asked of it.
        let source = matches!(header.kind, header::Kind::Read | header::Kind::Digest)
            && matches!(running.links[r], Link::Up { .. });
        if source && self.nodes[r].core.meta().syncing && running.engine.member_set().contains(id_of(r)) {
            return Err(format!("{} is asked for data while it is being filled", id_of(r)));
        }
        if header.kind == header::Kind::Read && !running.engine.member_set().contains(id_of(r)) {
            return Err(format!("{} is read from and is no member", id_of(r)));
        }
        // What is sent on a connection that is gone goes nowhere.
        if let Link::Up { queue, .. } = &mut running.links[r] {
            queue.push_back(frame);
        }
        Ok(())
    }

    pub(super) fn completed(&mut self, e: usize, op: OpId, outcome: &Outcome) -> Result<(), String> {
        let running = &mut self.engines[e];
        let generation = running.engine.generation();
        let buffer = running.buffers.remove(&op.slot);
        let client = running.clients.remove(&op.slot).filter(|(serial, _)| *serial == op.serial);
        let (_, client) = client.ok_or("an answer to nothing")?;
        if *outcome != Outcome::Done {
            return Ok(());
        }
        match client {
            ClientOp::Write { block, value } => self.truth.acknowledged(block, value, generation),
            ClientOp::Read { block, writes_before } => {
                let value = buffer.ok_or("a read without a buffer")?[block];
                self.truth.read(block, value, generation, writes_before)
            }
            ClientOp::Flush { durable } => {
                self.truth.flushed(durable, generation);
                Ok(())
            }
        }
    }

    /// What holds in every state.
    pub(in crate::core::model) fn check(&self) -> Result<(), String> {
        if self.lost {
            return Ok(());
        }
        self.every_start_is_sound()?;
        self.maps_cover_differences()?;
        self.settled_members_are_equal()
    }

    /// Whoever starts now, with any replicas and with the registry or without: each of its members has every write that
    /// was acknowledged. With all of them here, somebody can start.
    fn every_start_is_sound(&self) -> Result<(), String> {
        if self.record.1.view.members.iter().all(|id| self.nodes[slot(id)].older) {
            // Only older copies are left of the last members: an operator decides, and what may be lost where the record
            // cannot be asked either is said in the documents.
            return Ok(());
        }
        let welcomes: Vec<Welcome> = self.nodes.iter().map(|node| node.welcome()).collect();
        let all = 1u32 << self.nodes.len();
        for here in 1..all {
            let fenced: Vec<_> = (0..self.nodes.len())
                .filter(|r| here >> r & 1 == 1)
                .map(|r| (id_of(r), &welcomes[r]))
                .collect();
            for registry in [RegistryState::Attached, RegistryState::Unreachable] {
                let (status, version) = match registry {
                    RegistryState::Attached => (&self.record.1, self.record.0 + 1),
                    RegistryState::Unreachable => (&self.first, 1),
                };
                let Decision::Start { members, newest, .. } = decide(status, version, registry, &fenced)
                else {
                    if here == all - 1 && registry == RegistryState::Attached {
                        return Err("nobody can start although everybody is here".to_owned());
                    }
                    continue;
                };
                if members.iter().all(|id| self.nodes[slot(id)].older) {
                    // Nothing tells it from the newest copy while the others are away: the documents say for how long.
                    continue;
                }
                let lost = members.iter().all(|id| self.nodes[slot(id)].core.meta().cache_lost);
                for member in members.iter() {
                    self.holds_all(slot(member), lost).map_err(|what| {
                        format!("a start from {newest}, registry {registry:?}, with {members}: {what}")
                    })?;
                }
            }
        }
        Ok(())
    }

    fn holds_all(&self, r: usize, lost: bool) -> Result<(), String> {
        for (block, value) in self.nodes[r].data.iter().enumerate() {
            if self.truth.may_be(block, lost) & one(*value) == 0 {
                let expected = self.truth.expected(block);
                return Err(format!("{} has {value} in block {block}; {expected}", id_of(r)));
            }
        }
        Ok(())
    }

    /// I9, over the one region of the model's volume. Where two members of the newest view differ, one of them says so in
    /// its write-intent map; where a member and a replica that is none do, the member's map of it or its own write-intent
    /// map says so, if the map reaches back to when it was a member. What lost its cache is compared with nobody.
    fn maps_cover_differences(&self) -> Result<(), String> {
        let newest = self.nodes.iter().map(|node| node.core.meta().view).max_by_key(|view| view.order());
        let Some(newest) = newest else { return Ok(()) };
        for member in &self.nodes {
            let meta = member.core.meta();
            let counts = meta.view == newest && newest.members.contains(meta.replica);
            if !counts || meta.syncing || meta.cache_lost || member.older {
                continue;
            }
            for other in self.nodes.iter().filter(|other| other.data != member.data) {
                let theirs = other.core.meta();
                let told = match member.lacks(other) {
                    Some(map) => map,
                    None if newest.members.contains(theirs.replica)
                        && !theirs.syncing
                        && !other.older
                        && !theirs.cache_lost =>
                    {
                        member.intent() | other.intent()
                    }
                    None => continue,
                };
                if told == 0 {
                    return Err(format!(
                        "{} and {} differ, and no map says so",
                        meta.replica, theirs.replica
                    ));
                }
            }
        }
        Ok(())
    }

    fn settled_members_are_equal(&self) -> Result<(), String> {
        for running in &self.engines {
            let engine = &running.engine;
            if running.ended || engine.generation() < self.truth.serving || !engine.is_settled() {
                continue;
            }
            let set = engine.member_set();
            let mut members = set.iter().map(slot).filter(
                |r| matches!(&running.links[*r], Link::Up { queue, mute: false } if queue.is_empty()),
            );
            let first = members.next();
            let differs = members.find(|r| first.is_some_and(|f| self.nodes[f].data != self.nodes[*r].data));
            if let (Some(first), Some(r)) = (first, differs) {
                return Err(format!("{} and {} are members, and differ", id_of(first), id_of(r)));
            }
        }
        Ok(())
    }
}

// ---- for people ----

impl World {
    /// What replicas, record and engines are after a step.
    pub(in crate::core::model) fn summary(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for (r, node) in self.nodes.iter().enumerate() {
            let meta = node.core.meta();
            let marks = if meta.syncing { " syncing" } else { "" };
            let _ = write!(text, " | {} {} {:?}{marks}", id_of(r), meta.view, node.data);
        }
        let (version, status) = &self.record;
        let _ = write!(text, " | record v{version} g{} {}", status.generation, status.view);
        for (e, running) in self.engines.iter().enumerate() {
            let (engine, ended) = (&running.engine, if running.ended { " ended" } else { "" });
            let _ = write!(text, " | E{e} g{} {}{ended}", engine.generation(), engine.member_set());
        }
        text
    }
}
