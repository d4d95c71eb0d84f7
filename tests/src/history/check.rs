//! Whether a history is one that registers could give. Exact, cell by cell: it keeps every state that the cell may be
//! in — its value, and which of the operations under way have taken effect — and a history is wrong where none is left.
//!
//! An operation takes effect at one moment between its invocation and its answer. One whose end is unknown may take
//! effect at any later moment, or never; but not any more once a write that was sent after its end was noticed has
//! taken effect: a device that lets the past land on top of that has lost an acknowledged write.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{CellAt, End, Entry, Kind, OpId, Value};

/// As many operations of one cell as may be under way together; what the workloads here keep far below.
const OPEN_MAX: usize = 128;
/// States of one cell; with so many its operations overlap too much for the answer to mean anything.
const STATES_MAX: usize = 200_000;
/// How much of a cell's past a violation tells.
const TOLD: usize = 24;

/// A history that no set of registers gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The cell.
    pub cell: CellAt,
    /// The entry of the history at which no explanation is left.
    pub entry: usize,
    /// What happened there, what would have been possible, and what led to it.
    pub text: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cell {:#x} (block {}), entry {}: {}", self.cell, self.cell / 4096, self.entry, self.text)
    }
}

/// What one operation is to one cell, with its end known from the start.
#[derive(Debug, Clone, Copy)]
struct Operation {
    effect: Effect,
    fua: bool,
    invoked: usize,
    /// The entry that told its end, and whether that was an answer.
    ended: Option<(usize, bool)>,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Write(Value),
    Read(Value),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Invoke(usize),
    Return(usize),
    /// With the latest invocation of a flush that was answered before it.
    PowerCut(Option<usize>),
}

/// One cell's part of a history.
#[derive(Debug, Default)]
struct Cell {
    operations: Vec<Operation>,
    steps: Vec<(usize, Step)>,
}

/// Whether registers that hold `initial` (zeros where that is silent) could give this history.
///
/// # Errors
/// One violation of each cell that is wrong.
///
/// # Panics
/// When it is no history: an answer to what was not asked, or a power cut under operations.
pub fn check(initial: &BTreeMap<CellAt, Value>, entries: &[Entry]) -> Result<(), Vec<Violation>> {
    let wrong: Vec<Violation> = cells(entries)
        .into_iter()
        .filter_map(|(at, cell)| {
            let first = initial.get(&at).copied().unwrap_or(Value::Zero);
            Sweep::new(first, &cell).run().err().map(|(entry, text)| Violation { cell: at, entry, text })
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn cells(entries: &[Entry]) -> BTreeMap<CellAt, Cell> {
    let ends: HashMap<OpId, (usize, &End)> = entries
        .iter()
        .enumerate()
        .filter_map(|(i, entry)| match entry {
            Entry::Return { op, end } => Some((*op, (i, end))),
            Entry::Invoke { .. } | Entry::PowerCut => None,
        })
        .collect();
    let mut cells: BTreeMap<CellAt, Cell> = BTreeMap::new();
    let mut places: HashMap<OpId, Vec<(CellAt, usize)>> = HashMap::new();
    let mut flushes: HashMap<OpId, usize> = HashMap::new();
    let mut flushed = None;
    for (i, entry) in entries.iter().enumerate() {
        match entry {
            Entry::Invoke { op, kind: Kind::Flush, .. } => {
                flushes.insert(*op, i);
            }
            Entry::Invoke { op, kind, cells: touched } => {
                let end = ends.get(op).copied();
                for (n, at) in touched.iter().enumerate() {
                    let cell = cells.entry(*at).or_default();
                    if let Some(operation) = operation(kind, i, end, n) {
                        let index = cell.operations.len();
                        cell.operations.push(operation);
                        cell.steps.push((i, Step::Invoke(index)));
                        places.entry(*op).or_default().push((*at, index));
                    }
                }
            }
            Entry::Return { op, end } => {
                if let (Some(invoked), End::Done(_)) = (flushes.remove(op), end) {
                    flushed = flushed.max(Some(invoked));
                }
                for (at, index) in places.remove(op).unwrap_or_default() {
                    cells.entry(at).or_default().steps.push((i, Step::Return(index)));
                }
            }
            Entry::PowerCut => {
                assert!(places.is_empty(), "entry {i}: a power cut under operations {places:?}");
                for cell in cells.values_mut() {
                    cell.steps.push((i, Step::PowerCut(flushed)));
                }
            }
        }
    }
    cells
}

/// The operation as its `n`th cell sees it; none where it says nothing: a read without an answer.
fn operation(kind: &Kind, invoked: usize, end: Option<(usize, &End)>, n: usize) -> Option<Operation> {
    let ended = end.map(|(i, end)| (i, matches!(end, End::Done(_))));
    let (effect, fua) = match kind {
        Kind::Write { tag, fua } => (Effect::Write(Value::Tag(*tag)), *fua),
        Kind::Zero => (Effect::Write(Value::Zero), false),
        Kind::Read => match end {
            Some((_, End::Done(values))) => (Effect::Read(*values.get(n).expect("a value per cell")), false),
            Some((_, End::Unknown)) | None => return None,
        },
        Kind::Flush => return None,
    };
    Some(Operation { effect, fua, invoked, ended })
}

/// What a cell holds in one possible past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Content {
    Known(Value),
    /// Parts of several writes, not read yet: a power cut while one was not on stable storage.
    Mixed,
}

/// One possible state: the content, and which of the open slots have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct State {
    content: Content,
    done: u128,
}

/// The walk through one cell's history.
struct Sweep<'a> {
    cell: &'a Cell,
    slots: Vec<Option<usize>>,
    states: HashSet<State>,
    /// Values that some read saw: an unanswered write that nobody saw explains nothing, and is left out.
    seen: HashSet<Value>,
    /// Since the last power cut.
    before_cut: Vec<Value>,
}

impl<'a> Sweep<'a> {
    fn new(first: Value, cell: &'a Cell) -> Self {
        let seen = cell.operations.iter().filter_map(|o| match o.effect {
            Effect::Read(value) => Some(value),
            Effect::Write(_) => None,
        });
        Self {
            slots: Vec::new(),
            states: HashSet::from([State { content: Content::Known(first), done: 0 }]),
            seen: seen.collect(),
            before_cut: vec![first],
            cell,
        }
    }

    fn run(mut self) -> Result<(), (usize, String)> {
        let mut since = 0;
        for (i, (entry, step)) in self.cell.steps.iter().enumerate() {
            match step {
                Step::Invoke(op) => self.invoke(*op),
                Step::Return(op) => self.ended(*op, i).map_err(|text| (*entry, text))?,
                Step::PowerCut(flushed) => {
                    self.power_cut(since, i, *flushed);
                    since = i + 1;
                }
            }
        }
        Ok(())
    }

    fn operation(&self, slot: usize) -> Option<&'a Operation> {
        self.slots.get(slot).copied().flatten().map(|op| &self.cell.operations[op])
    }

    fn invoke(&mut self, op: usize) {
        let operation = &self.cell.operations[op];
        let answered = operation.ended.is_some_and(|(_, answered)| answered);
        if let Effect::Write(value @ Value::Tag(_)) = operation.effect
            && !answered
            && !self.seen.contains(&value)
        {
            return;
        }
        let slot = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        assert!(slot < OPEN_MAX, "more than {OPEN_MAX} operations of a cell are under way");
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(op);
        if matches!(operation.effect, Effect::Read(_)) {
            self.states = self.states.iter().map(|state| self.reads_done(*state)).collect();
        }
    }

    /// A read that sees the content may as well have been at this moment: it changes nothing for anybody else.
    fn reads_done(&self, mut state: State) -> State {
        for slot in 0..self.slots.len() {
            if let Some(Operation { effect: Effect::Read(value), .. }) = self.operation(slot)
                && Content::Known(*value) == state.content
            {
                state.done |= 1 << slot;
            }
        }
        state
    }

    fn ended(&mut self, op: usize, step: usize) -> Result<(), String> {
        let Some(slot) = self.slots.iter().position(|s| *s == Some(op)) else { return Ok(()) };
        let answered = self.cell.operations[op].ended.is_some_and(|(_, answered)| answered);
        if answered {
            let possible = self.with_effect_of(slot)?;
            if possible.is_empty() {
                return Err(self.tell(op, step));
            }
            self.states = possible;
        }
        self.release_slots(step);
        Ok(())
    }

    /// Every state in which the operation of `slot` has taken effect, reached from the present ones.
    fn with_effect_of(&self, slot: usize) -> Result<HashSet<State>, String> {
        let mut visited: HashSet<State> = self.states.clone();
        let mut todo: Vec<State> = self.states.iter().copied().collect();
        let mut found = HashSet::new();
        while let Some(state) = todo.pop() {
            if state.done & (1 << slot) != 0 {
                found.insert(state);
                continue;
            }
            for other in 0..self.slots.len() {
                if state.done & (1 << other) == 0
                    && let Some(next) = self.after(state, other)
                    && visited.insert(next)
                {
                    todo.push(next);
                }
            }
            if visited.len() > STATES_MAX {
                return Err(format!("more than {STATES_MAX} states: the operations overlap too much"));
            }
        }
        Ok(found)
    }

    /// The state after the operation of `slot` takes effect in `state`, where it can.
    fn after(&self, state: State, slot: usize) -> Option<State> {
        let operation = self.operation(slot)?;
        let mut next = State { content: state.content, done: state.done | 1 << slot };
        match operation.effect {
            Effect::Read(value) => match (state.content, value) {
                (Content::Known(known), _) => (known == value).then_some(next),
                (Content::Mixed, Value::Torn(_)) => {
                    next.content = Content::Known(value);
                    Some(self.reads_done(next))
                }
                (Content::Mixed, Value::Zero | Value::Tag(_)) => None,
            },
            Effect::Write(value) => {
                next.content = Content::Known(value);
                next.done |= self.overtaken_by(operation);
                Some(self.reads_done(next))
            }
        }
    }

    /// The slots whose end was unknown before `write` was sent: they cannot land on top of it.
    fn overtaken_by(&self, write: &Operation) -> u128 {
        (0..self.slots.len())
            .filter(|slot| {
                let ended = self.operation(*slot).and_then(|o| o.ended);
                ended.is_some_and(|(at, answered)| !answered && at < write.invoked)
            })
            .fold(0, |mask, slot| mask | 1 << slot)
    }

    /// Forgets what has ended and has taken effect in every state.
    fn release_slots(&mut self, step: usize) {
        let now = self.cell.steps[step].0;
        let everywhere = self.states.iter().fold(u128::MAX, |mask, state| mask & state.done);
        for slot in 0..self.slots.len() {
            let over = self.operation(slot).is_some_and(|o| o.ended.is_some_and(|(at, _)| at <= now));
            if over && everywhere & (1 << slot) != 0 {
                self.slots[slot] = None;
                let cleared =
                    |state: &State| State { content: state.content, done: state.done & !(1 << slot) };
                self.states = self.states.iter().map(cleared).collect();
            }
        }
    }

    /// From `steps[from..to]`: every write may be what is left that no later one, on stable storage, came after.
    fn power_cut(&mut self, from: usize, to: usize, flushed: Option<usize>) {
        let writes: Vec<&Operation> = self.cell.steps[from..to]
            .iter()
            .filter_map(|(_, step)| match step {
                Step::Invoke(op) => Some(&self.cell.operations[*op]),
                Step::Return(_) | Step::PowerCut(_) => None,
            })
            .filter(|o| matches!(o.effect, Effect::Write(_)))
            .collect();
        let durable =
            |o: &Operation| o.ended.is_some_and(|(at, answered)| answered && (o.fua || Some(at) < flushed));
        let superseded = |ended: usize| writes.iter().any(|o| durable(o) && ended < o.invoked);
        let mut contents = BTreeSet::new();
        if !writes.iter().any(|o| durable(o)) {
            // A value that a read found torn after an earlier cut is in no write, and may still be there.
            contents.extend(self.states.iter().map(|s| s.content));
            contents.extend(self.before_cut.iter().map(|value| Content::Known(*value)));
        }
        for write in &writes {
            let gone = write.ended.is_some_and(|(at, _)| superseded(at));
            if let (Effect::Write(value), false) = (write.effect, gone) {
                contents.insert(Content::Known(value));
                if !durable(write) {
                    contents.insert(Content::Mixed);
                }
            }
        }
        self.before_cut = contents
            .iter()
            .filter_map(|content| match content {
                Content::Known(value) => Some(*value),
                Content::Mixed => None,
            })
            .collect();
        self.slots.clear();
        self.states = contents.into_iter().map(|content| State { content, done: 0 }).collect();
    }

    fn tell(&self, op: usize, step: usize) -> String {
        let contents: BTreeSet<Content> = self.states.iter().map(|s| s.content).collect();
        let mut lines = vec![format!(
            "{} has no explanation; before its answer the cell could hold {contents:?}, with these under way: {}",
            describe(&self.cell.operations[op]),
            self.slots
                .iter()
                .flatten()
                .map(|op| describe(&self.cell.operations[*op]))
                .collect::<Vec<_>>()
                .join("; ")
        )];
        for (entry, step) in &self.cell.steps[step.saturating_sub(TOLD)..=step] {
            lines.push(match step {
                Step::Invoke(op) => format!("  {entry}: sent {}", describe(&self.cell.operations[*op])),
                Step::Return(op) => format!("  {entry}: end of {}", describe(&self.cell.operations[*op])),
                Step::PowerCut(_) => format!("  {entry}: power cut"),
            });
        }
        lines.join("\n")
    }
}

fn describe(operation: &Operation) -> String {
    let what = match operation.effect {
        Effect::Read(value) => format!("a read of {value}"),
        Effect::Write(value) => format!("the writing of {value}"),
    };
    let end = match operation.ended {
        Some((at, true)) => format!("{at}"),
        Some((at, false)) => format!("unknown at {at}"),
        None => "open".to_owned(),
    };
    format!("{what} [{}, {end}]", operation.invoked)
}
