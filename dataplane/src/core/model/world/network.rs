//! Connections: made, broken, and what goes over them.

use super::*;

impl World {
    pub(super) fn fence(&mut self, e: u8, r: u8, heard: bool) -> Result<(), String> {
        let (ei, ri) = (index(e), index(r));
        let running = &self.engines[ei];
        let (generation, uuid) = (running.wanted_generation(), running.uuid);
        let had = self.nodes[ri].engine;
        let answer = self.node(ri).fence(ei, generation, uuid)?;
        if let Some(old) = had.filter(|_| self.nodes[ri].engine != had || answer.is_ok()) {
            self.end_link(old, ri, Link::Dead);
        }
        match answer {
            Ok(welcome) if heard => {
                self.engines[ei].links[ri] = Link::Up { queue: VecDeque::new(), mute: false };
                let boot = self.nodes[ri].boot();
                self.tell(e, |engine, now| {
                    engine.connected(id_of(ri), 1, generation, welcome, boot, now);
                })
            }
            Err(Refused { kind: RefusalKind::Fenced, generation, engine, .. }) if heard => {
                self.failed(e, r, ConnectFailure::Fenced { generation, engine })
            }
            Ok(_) => {
                self.node(ri).session_ended()?;
                self.failed(e, r, ConnectFailure::Unreachable(String::new()))
            }
            Err(_) => self.failed(e, r, ConnectFailure::Unreachable(String::new())),
        }
    }

    /// The frames of a connection that is gone are, too; but those already at the disk, where nobody waits for them.
    pub(super) fn end_link(&mut self, e: usize, r: usize, then: Link) {
        if let Link::Up { queue, .. } = std::mem::replace(&mut self.engines[e].links[r], then)
            && !kept(Rule::Drain)
        {
            self.node(r).undrained.extend(
                queue.into_iter().filter(|f| f.changes() && f.update.is_none() && f.header.extent > 0),
            );
        }
    }

    pub(super) fn failed(&mut self, e: u8, r: u8, why: ConnectFailure) -> Result<(), String> {
        self.engines[index(e)].links[index(r)] = Link::None;
        self.tell(e, |engine, now| engine.connect_failed(id_of(index(r)), why, now))
    }

    /// The engine learns that the connection is gone; if it is not yet, it breaks.
    pub(super) fn notice(&mut self, e: u8, r: u8) -> Result<(), String> {
        let (ei, ri) = (index(e), index(r));
        match self.engines[ei].links[ri] {
            Link::None | Link::Wanted => return Ok(()),
            Link::Dead => self.engines[ei].links[ri] = Link::None,
            Link::Up { .. } => self.hang_up(ei, ri)?,
        }
        self.tell(e, |engine, now| engine.disconnected(id_of(ri), 1, "", now))
    }

    pub(super) fn hang_up(&mut self, e: usize, r: usize) -> Result<(), String> {
        let up = matches!(self.engines[e].links[r], Link::Up { .. });
        self.end_link(e, r, Link::None);
        if up && self.nodes[r].engine == Some(e) { self.node(r).session_ended() } else { Ok(()) }
    }

    pub(super) fn restart(&mut self, r: usize, lost: Option<u8>) -> Result<(), String> {
        if let Some(e) = self.nodes[r].engine {
            self.engines[e].links[r] = Link::Dead;
        }
        self.node(r).undrained.clear();
        self.node(r).restart(lost);
        Ok(())
    }

    /// The engine's process has ended.
    pub(super) fn gone(&mut self, e: usize) -> Result<(), String> {
        for r in 0..self.nodes.len() {
            self.hang_up(e, r)?;
        }
        let running = &mut self.engines[e];
        if let Some((_, version, status)) = running.ask.take() {
            self.late.push((version, status));
        }
        running.buffers.clear();
        running.clients.clear();
        running.ended = true;
        Ok(())
    }

    pub(super) fn deliver(&mut self, e: u8, r: u8) -> Result<(), String> {
        let (ei, ri) = (index(e), index(r));
        let Link::Up { queue, .. } = &mut self.engines[ei].links[ri] else { return Ok(()) };
        let Some(frame) = queue.pop_front() else { return Ok(()) };
        let reply = self.node(ri).carry_out(&frame)?;
        let running = &mut self.engines[ei];
        match running.engine.payload_use(&reply.header) {
            // One block has a value that is not zero, or is a hole.
            PayloadUse::Fill(op) | PayloadUse::FillAndLook(op) => {
                let buffer = running.buffers.get_mut(&op.slot).ok_or("a read without a buffer")?;
                *buffer = reply.data;
            }
            PayloadUse::Merge { .. } | PayloadUse::Inline | PayloadUse::Discard => {}
        }
        self.tell(e, |engine, now| engine.reply(id_of(ri), 1, &reply.header, &reply.inline, now))
    }

    /// Frames up to the next that changes something are carried out, and nothing is heard of it.
    pub(super) fn lose(&mut self, e: usize, r: usize) -> Result<(), String> {
        let Link::Up { queue, mute } = &mut self.engines[e].links[r] else { return Ok(()) };
        if !std::mem::replace(mute, true) {
            self.left.faults -= 1;
        }
        while let Some(frame) = queue.pop_front() {
            Rc::make_mut(&mut self.nodes[r]).carry_out(&frame)?;
            if frame.changes() {
                break;
            }
        }
        Ok(())
    }
}
