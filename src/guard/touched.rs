//! What a running statement touches: guarded tables, and agd's own objects.
//!
//! Owns the object-access hook and one frame for each statement that runs: what was there before it, and what it made,
//! changed or dropped. Promises to note every table, trigger, policy, rule, constraint and default that PostgreSQL reports,
//! whatever command, function or extension is behind it. Never decides: [`super::protect`] does.
#![allow(unsafe_code)] // the hook, catalog scans, parse nodes

use crate::error::{self, Result};
use crate::guard::place::{
    Guard, class, extension, guard_of, is_own, is_own_by_itself, is_watched, place_of, referenced_by, table_of,
};
use crate::guard::{detach::Detached, protect};
use crate::query::At;
use crate::{identity, nesting, tenant};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int, c_void};

/// A guard that a statement touches.
#[derive(Clone)]
pub struct Touched {
    /// The guard.
    pub guard: Guard,
    /// The statement is about the table itself. (A foreign key that points to it leaves triggers on it, no more.)
    pub is_about_it: bool,
}

/// One running statement.
pub struct Frame {
    level: u32,
    /// Part of another statement, which is judged as a whole.
    part: bool,
    /// One of agd's own.
    permitted: bool,
    /// The statement may change agd's own objects: it removes or updates the extension.
    pub own_permitted: bool,
    /// The number of the first command of this statement: what has this number or a higher one is its doing.
    pub first_command: pg_sys::CommandId,
    /// None: not a utility statement, but a query with a function that does DDL by itself.
    pub tag: Option<pg_sys::CommandTag::Type>,
    /// Where its text stands.
    source: (*const c_char, c_int, c_int),
    /// As whom the statement runs.
    pub user: pg_sys::Oid,
    /// ALTER TABLE with a subcommand that can change values of rows.
    pub may_change_values: bool,
    /// … by an expression of the statement.
    pub has_using: bool,
    /// Columns whose type is set, so that their values may read otherwise: table, name.
    pub retyped: Vec<(u32, String, bool)>,
    /// Tables that foreign keys point to which it made, but for those of partitions.
    pub references: BTreeSet<u32>,
    /// What became of the columns was told in an event.
    pub columns_told: bool,
    /// DETACH PARTITION: what leaves the tree.
    pub detached: Option<Detached>,
    /// Objects made or changed: catalog, oid.
    noted: BTreeSet<(u32, u32)>,
    /// Relations of which a column is made, changed or dropped.
    pub reshaped: BTreeSet<u32>,
    /// Roots of the guarded tables that the statement works through now: nobody writes them meanwhile.
    busy: BTreeSet<u32>,
    /// What is to be said when the extension is gone.
    pub last_words: Option<String>,
    /// Tables touched.
    pub relations: BTreeSet<u32>,
    /// Guards touched, by their root.
    pub guards: BTreeMap<u32, Touched>,
    /// An object of agd's own is touched.
    pub own: bool,
    /// Triggers made or changed that call a function of agd's, whatever table they stand on but agd's own.
    pub calling: BTreeSet<u32>,
    /// What the statement did, by root: command and object.
    pub named: Vec<(u32, String)>,
    /// What it dropped, by root.
    pub dropped: Vec<(u32, String)>,
}

thread_local! {
    static FRAMES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
    /// Statements that begin at this level are agd's own.
    static PERMITTED: Cell<Option<u32>> = const { Cell::new(None) };
    /// A frame may be busy with a guarded table. The gate asks for every row.
    static ANY_BUSY: Cell<bool> = const { Cell::new(false) };
}

impl Frame {
    fn new(level: u32) -> Self {
        Frame {
            level,
            part: false,
            permitted: false,
            own_permitted: false,
            // SAFETY: reads a process global.
            first_command: unsafe { pg_sys::GetCurrentCommandId(false) },
            tag: None,
            source: (std::ptr::null(), -1, 0),
            user: identity::current_user(),
            may_change_values: false,
            has_using: false,
            retyped: Vec::new(),
            references: BTreeSet::new(),
            columns_told: false,
            detached: None,
            noted: BTreeSet::new(),
            reshaped: BTreeSet::new(),
            busy: BTreeSet::new(),
            last_words: None,
            relations: BTreeSet::new(),
            guards: BTreeMap::new(),
            own: false,
            calling: BTreeSet::new(),
            named: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// The state that the statement found.
    pub fn before(&self) -> At {
        At::Before(self.first_command)
    }

    /// Does it act for a tenant: by its binding, or by the role that logged in, that SET ROLE chose, or as whom it runs?
    pub fn acts_for_a_tenant(&self) -> Result<bool> {
        tenant::acts_for_one(self.user)
    }

    /// Does it define anything? VACUUM, CLUSTER and their kind do not.
    pub fn defines(&self) -> bool {
        // SAFETY: looks the tag up in a table of constants.
        self.tag.is_none_or(|tag| unsafe { pg_sys::command_tag_event_trigger_ok(tag) })
    }

    /// Where it stored rows anew, may their values be others? Only of what is known to leave them alone they are not.
    pub fn may_store_other_values(&self) -> bool {
        use pg_sys::CommandTag::{
            CMDTAG_ALTER_TABLE, CMDTAG_CLUSTER, CMDTAG_REINDEX, CMDTAG_TRUNCATE_TABLE, CMDTAG_VACUUM,
        };
        let leaves_them_alone =
            [CMDTAG_ALTER_TABLE, CMDTAG_CLUSTER, CMDTAG_REINDEX, CMDTAG_TRUNCATE_TABLE, CMDTAG_VACUUM];
        self.may_change_values || self.tag.is_none_or(|tag| !leaves_them_alone.contains(&tag))
    }

    /// It works through a guarded table from here on.
    pub fn begin_work_on(&mut self, root: pg_sys::Oid) {
        self.busy.insert(root.to_u32());
        ANY_BUSY.set(true);
    }

    /// What it does to tables it has done.
    pub fn work_is_done(&mut self) {
        self.busy.clear();
    }

    /// Has it touched anything that may be guarded?
    fn is_idle(&self) -> bool {
        self.noted.is_empty()
            && self.reshaped.is_empty()
            && self.relations.is_empty()
            && self.guards.is_empty()
            && self.calling.is_empty()
            && !self.own
            && self.last_words.is_none()
    }

    /// Everything noted so far, out of the running statement.
    fn take(&mut self) -> Frame {
        let mut taken = Frame::new(self.level);
        taken.own_permitted = self.own_permitted;
        taken.first_command = self.first_command;
        taken.tag = self.tag;
        taken.source = self.source;
        taken.user = self.user;
        taken.may_change_values = self.may_change_values;
        taken.has_using = self.has_using;
        taken.retyped = std::mem::take(&mut self.retyped);
        taken.references = std::mem::take(&mut self.references);
        // Whatever is judged later of this statement does not tell it again.
        taken.columns_told = std::mem::replace(&mut self.columns_told, true);
        taken.detached = self.detached.take();
        taken.noted = std::mem::take(&mut self.noted);
        taken.reshaped = std::mem::take(&mut self.reshaped);
        taken.relations = std::mem::take(&mut self.relations);
        taken.guards = std::mem::take(&mut self.guards);
        taken.own = std::mem::take(&mut self.own);
        taken.calling = std::mem::take(&mut self.calling);
        taken.named = std::mem::take(&mut self.named);
        taken.dropped = std::mem::take(&mut self.dropped);
        taken
    }

    fn add(&mut self, part: Frame) {
        self.noted.extend(part.noted);
        self.reshaped.extend(part.reshaped);
        self.relations.extend(part.relations);
        for (root, touched) in part.guards {
            self.touch(root, touched);
        }
        self.own |= part.own;
        self.calling.extend(part.calling);
        self.may_change_values |= part.may_change_values;
        self.has_using |= part.has_using;
        self.retyped.extend(part.retyped);
        self.references.extend(part.references);
        self.detached = self.detached.take().or(part.detached);
    }

    fn touch(&mut self, root: u32, touched: Touched) {
        match self.guards.get_mut(&root) {
            Some(present) => present.is_about_it |= touched.is_about_it,
            None => {
                self.guards.insert(root, touched);
            }
        }
    }

    /// Notes an object: what it belongs to is found out when the statement ends and the object can be seen. Whether it is
    /// one of agd's own, now too: at the end it may be in another schema.
    pub fn note(&mut self, class: u32, object: pg_sys::Oid) {
        self.own |= class == class::RELATION && is_own(object) || is_own_by_itself(class, object);
        self.noted.insert((class, object.to_u32()));
    }

    /// Notes that a table is touched; the guard it is behind, if any, is returned.
    pub fn note_relation(&mut self, relation: pg_sys::Oid, is_about_it: bool, at: At) -> Result<Option<Guard>> {
        let relation = table_of(relation);
        self.own |= is_own(relation);
        let guard = guard_of(relation, at)?;
        if let Some(guard) = &guard {
            self.relations.insert(relation.to_u32());
            self.touch(guard.root.to_u32(), Touched { guard: guard.clone(), is_about_it });
        }
        Ok(guard)
    }

    /// Finds out what everything noted belongs to.
    pub fn resolve(&mut self) -> Result<()> {
        for (class, object) in std::mem::take(&mut self.noted) {
            let object = pg_sys::Oid::from(object);
            if is_own_by_itself(class, object) {
                self.own = true;
            }
            if class == class::CONSTRAINT
                && let Some(referenced) = referenced_by(object)?
            {
                self.references.insert(referenced.to_u32());
            }
            if let Some(place) = place_of(class, object, At::Now)? {
                if place.calls_own && !is_own(place.relation) {
                    self.calling.insert(object.to_u32());
                }
                self.note_relation(place.relation, !place.is_internal, At::Now)?;
            }
        }
        Ok(())
    }

    /// The text of the statement, cut where it is longer than so many bytes; and its whole length. (Statements may have a
    /// gigabyte.)
    pub fn statement(&self, longest: usize) -> (String, usize) {
        let (source, location, length) = self.source;
        if source.is_null() {
            return (String::new(), 0);
        }
        // SAFETY: the query string outlives the statement it holds, and a frame does not.
        let whole = unsafe { CStr::from_ptr(source) }.to_bytes();
        let from = usize::try_from(location).unwrap_or(0).min(whole.len());
        let to = match usize::try_from(length) {
            Ok(length) if length > 0 => (from + length).min(whole.len()),
            _ => whole.len(),
        };
        let whole = whole[from..to].trim_ascii();
        // A character that the cut would take apart is left out.
        let mut cut = whole.len().min(longest);
        while whole.get(cut).is_some_and(|byte| byte & 0xc0 == 0x80) && cut > 0 {
            cut -= 1;
        }
        (String::from_utf8_lossy(&whole[..cut]).into_owned(), whole.len())
    }

    /// Its command tag.
    pub fn tag_name(&self) -> String {
        match self.tag {
            // SAFETY: a static C string for every tag.
            Some(tag) => unsafe { CStr::from_ptr(pg_sys::GetCommandTagName(tag)) }.to_string_lossy().into_owned(),
            None => "DDL by a function".into(),
        }
    }
}

/// agd's own statements: none of them is judged.
pub fn permitted<T>(body: impl FnOnce() -> T) -> T {
    struct Reset(Option<u32>);
    impl Drop for Reset {
        fn drop(&mut self) {
            PERMITTED.set(self.0);
        }
    }
    // Only the statements that run directly from here: what an event trigger of somebody else's does meanwhile is deeper.
    let _reset = Reset(PERMITTED.replace(Some(nesting::level() + 1)));
    body()
}

/// A utility statement begins at the present level.
///
/// # Safety
/// The arguments are those of a ProcessUtility hook.
pub unsafe fn statement_begins(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    context: pg_sys::ProcessUtilityContext::Type,
) {
    let level = nesting::level();
    let mut frame = Frame::new(level);
    frame.part = context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_SUBCOMMAND;
    frame.permitted = PERMITTED.get() == Some(level);
    // SAFETY: a valid parse tree.
    unsafe {
        frame.tag = Some(pg_sys::CreateCommandTag((*statement).utilityStmt));
        frame.source = (query, (*statement).stmt_location, (*statement).stmt_len);
    }
    FRAMES.with_borrow_mut(|frames| {
        frames.retain(|frame| frame.level < level);
        frames.push(frame);
    });
}

/// The statement of this level is over. What it touched, unless it is to be judged with the statement it is a part of.
pub fn statement_ends(level: u32) -> Option<Frame> {
    FRAMES.with_borrow_mut(|frames| {
        let frame = frames.iter().position(|frame| frame.level == level).map(|at| frames.swap_remove(at));
        frames.retain(|frame| frame.level < level);
        let frame = frame?;
        if frame.permitted || frame.is_idle() {
            return None;
        }
        if frame.part
            && let Some(whole) = frames.last_mut()
        {
            whole.add(frame);
            return None;
        }
        Some(frame)
    })
}

/// Does a statement work through this guarded table now? What a function writes that it calls would be lost with the old
/// copy of a table that is rewritten, or be left out of an index that is built.
pub fn is_worked_on(root: pg_sys::Oid) -> bool {
    if !ANY_BUSY.get() {
        return false;
    }
    FRAMES.with_borrow(|frames| {
        ANY_BUSY.set(frames.iter().any(|frame| !frame.busy.is_empty()));
        frames.iter().any(|frame| frame.busy.contains(&root.to_u32()))
    })
}

/// Did a query of this level do DDL without a statement?
pub fn query_did_ddl(level: u32) -> bool {
    FRAMES.with_borrow(|frames| frames.last().is_some_and(|frame| frame.level >= level && frame.tag.is_none()))
}

/// An error was caught, or the transaction ended: what ran deeper than this level runs no more.
pub fn return_to(level: u32) {
    FRAMES.with_borrow_mut(|frames| frames.retain(|frame| frame.level <= level && level > 0));
}

/// The statement that runs now, if it is to be watched.
pub fn with_running<T>(body: impl FnOnce(&mut Frame) -> T) -> Option<T> {
    let level = nesting::level();
    if level == 0 || is_off() {
        return None;
    }
    // Taken out for the time of the call: a catalog look-up runs arbitrary invalidation callbacks.
    let mut frame = FRAMES.with_borrow_mut(|frames| {
        frames.retain(|frame| frame.level <= level);
        match frames.last() {
            Some(frame) if frame.level == level => frames.pop(),
            _ => None,
        }
        .unwrap_or_else(|| Frame::new(level))
    });
    let result = (!frame.permitted).then(|| body(&mut frame));
    FRAMES.with_borrow_mut(|frames| frames.push(frame));
    result
}

/// What the running statement touched so far; from here on it begins anew.
pub fn take_running() -> Option<Frame> {
    with_running(Frame::take)
}

/// The state that the running statement found. None: no statement is running.
pub fn before_running() -> Option<At> {
    let level = nesting::level();
    FRAMES.with_borrow(|frames| frames.iter().rev().find(|frame| frame.level <= level).map(Frame::before))
}

/// Nothing is watched: agd's own installation script runs, or pg_upgrade rebuilds a database object by object.
pub fn is_off() -> bool {
    // SAFETY: reads process globals; the look-up of the extension happens inside CREATE or ALTER EXTENSION only.
    unsafe {
        pg_sys::IsBinaryUpgrade
            || !pg_sys::IsTransactionState()
            || (pg_sys::creating_extension && pg_sys::CurrentExtensionObject == extension())
    }
}

static mut PREVIOUS: pg_sys::object_access_hook_type = None;

/// Installs the hook. Called once from `_PG_init`.
pub fn init() {
    // SAFETY: _PG_init runs single-threaded in the postmaster; the previous hook is kept and called.
    unsafe {
        PREVIOUS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
}

unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    argument: *mut c_void,
) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE};
    // SAFETY: passes on exactly what PostgreSQL passed in. This frame has nothing to drop.
    unsafe {
        if let Some(previous) = PREVIOUS {
            previous(access, class, object, part, argument);
        }
        // Asked for every function and every schema of the search path too.
        if matches!(access, OAT_DROP | OAT_POST_ALTER | OAT_POST_CREATE) && is_watched(class) {
            error::entry(|| {
                if access == OAT_DROP {
                    let flags = (*argument.cast::<pg_sys::ObjectAccessDrop>()).dropflags;
                    return protect::dropping(class.to_u32(), object, part, flags);
                }
                // Inheritance is reported with the child; the parent comes beside it.
                let beside = if access == OAT_POST_ALTER && !argument.is_null() {
                    (*argument.cast::<pg_sys::ObjectAccessPostAlter>()).auxiliary_id
                } else {
                    pg_sys::InvalidOid
                };
                with_running(|frame| {
                    // A new extension cannot be agd: it would be there already.
                    if class.to_u32() == class::EXTENSION && access == OAT_POST_CREATE {
                        return;
                    }
                    frame.note(class.to_u32(), object);
                    if class.to_u32() == class::RELATION && part != 0 {
                        frame.reshaped.insert(object.to_u32());
                    }
                    if class.to_u32() == class::INHERITANCE && beside != pg_sys::InvalidOid {
                        frame.note(class::RELATION, beside);
                    }
                });
                Ok(())
            });
        }
    }
}
