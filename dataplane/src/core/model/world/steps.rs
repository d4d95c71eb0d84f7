//! Which steps are possible.

use super::*;

impl World {
    pub(in crate::core::model) fn steps(&self, out: &mut Vec<Step>) {
        if self.left.engines > 0 {
            out.push(Step::Start);
        }
        for (e, running) in self.engines.iter().enumerate().filter(|(_, r)| !r.ended) {
            self.engine_steps(small(e), running, out);
        }
        let some = |left: u8| left > 0;
        for (r, node) in self.nodes.iter().enumerate() {
            let r = small(r);
            if some(self.left.kills) && (node.engine.is_some()) {
                out.push(Step::Kill(r));
            }
            if some(self.left.reboots) {
                let unflushed = node.unflushed();
                (0..1 << BLOCKS).filter(|lost| lost & !unflushed == 0).for_each(|lost| {
                    out.push(Step::Reboot(r, lost));
                });
            }
            if !node.undrained.is_empty() {
                out.push(Step::Undrained(r));
            }
        }
        if some(self.left.rollbacks) && self.copy.is_none() {
            for (r, node) in self.nodes.iter().enumerate() {
                let unflushed = node.unflushed();
                let parts = (0..1 << BLOCKS).filter(|lost| lost & !unflushed == 0);
                parts.for_each(|lost| out.push(Step::Copy(small(r), lost)));
            }
        }
        if self.copy.is_some() {
            out.push(Step::GoBack);
        }
        (0..self.late.len()).for_each(|i| out.push(Step::Late(small(i))));
        if some(self.left.restores) {
            (0..self.history.len()).for_each(|i| out.push(Step::Restore(small(i))));
        }
    }

    fn engine_steps(&self, e: u8, running: &Running, out: &mut Vec<Step>) {
        let left = &self.left;
        if running.ask.is_some() {
            out.push(Step::Answer(e));
            if left.away > 0 {
                out.push(Step::Away(e));
            }
        }
        for (r, link) in running.links.iter().enumerate() {
            let r = small(r);
            match link {
                Link::None => {}
                Link::Wanted => {
                    out.push(Step::Fence(e, r));
                    if left.faults > 0 {
                        out.extend([Step::FenceUnheard(e, r), Step::Fail(e, r)]);
                    }
                }
                Link::Dead => {
                    out.push(Step::Notice(e, r));
                    if left.faults > 0 {
                        out.push(Step::Fail(e, r));
                    }
                }
                Link::Up { queue, mute } => {
                    if !queue.is_empty() && !mute {
                        out.push(Step::Deliver(e, r));
                        if left.failures > 0 && queue.front().is_some_and(Frame::flushes) {
                            out.push(Step::FlushFails(e, r));
                        }
                    }
                    if (*mute || left.faults > 0) && queue.iter().any(Frame::changes) {
                        out.push(Step::Lose(e, r));
                    }
                    if *mute {
                        out.push(Step::Notice(e, r));
                    }
                    if left.faults > 0 {
                        out.push(Step::Fail(e, r));
                        if !mute {
                            out.push(Step::Cut(e, r));
                        }
                    }
                }
            }
        }
        out.push(Step::Tick(e));
        if running.engine.is_serving() {
            if left.writes > 0 {
                out.push(Step::Write(e));
            }
            if left.detaches > 0 {
                out.push(Step::Detach(e));
            }
            if left.flushes > 0 {
                out.push(Step::Flush(e));
            }
            if left.reads > 0 {
                for member in running.engine.member_set().iter() {
                    for block in 0..if self.kind.overwrite { 1 } else { BLOCKS } {
                        out.push(Step::Read(e, small(slot(member)), small(block)));
                    }
                }
            }
        }
    }
}
