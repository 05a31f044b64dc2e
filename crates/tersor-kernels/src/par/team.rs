//! The team of a region: the thread that leads it, and the threads of the pool that help.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The role of a thread in a region.
#[derive(Clone, Copy)]
enum Role {
    /// No part in a region, or waiting for work.
    None,
    /// Leader of this team, with no job posted.
    Leader(*const Team),
    /// At work on an item of a job, or waiting for other threads to finish theirs.
    Item,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::None) };
    /// The team that this thread leads or helps: it must not become a helper of the same team a second time.
    static MEMBER: Cell<*const Team> = const { Cell::new(std::ptr::null()) };
}

/// Whether a region is active in this process.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Rounds of waiting before a thread runs other jobs of the pool, or yields the processor.
const PATIENCE: u32 = 1 << 12;

/// A leader, who posts one job after the other, and helpers, who take items of it.
struct Team {
    /// Written by the leader while the job is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// Whether items may be taken.
    open: AtomicBool,
    /// Number of helpers that may be reading the job.
    inside: AtomicUsize,
    /// Index of the next item.
    next: AtomicUsize,
    /// Whether the region has ended.
    over: AtomicBool,
    /// Number of helpers that started on a thread of this team and must be spawned again.
    missing: AtomicUsize,
    /// The payload of the first panic of a helper; `panicked` says whether there is one.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    /// The team itself; helpers keep a strong reference.
    this: Weak<Team>,
}

/// A function that takes items until there are none, and returns whether it took any.
#[derive(Clone, Copy)]
struct Job {
    data: *const (),
    call: unsafe fn(*const (), &AtomicUsize) -> bool,
}

// SAFETY: `job` is written by the leader alone, while `open` is false and `inside` is 0; see `post` and `help`. What
// `Job` points to is `Sync` and outlives the time that the job is open or somebody is inside.
unsafe impl Sync for Team {}
// SAFETY: as above; a team has no other part that belongs to a thread.
unsafe impl Send for Team {}

struct OnDrop<F: FnMut()>(F);
impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Sets a thread-local value until the result is dropped.
fn set<T: Copy>(key: &'static std::thread::LocalKey<Cell<T>>, value: T) -> impl Drop {
    let before = key.replace(value);
    OnDrop(move || key.set(before))
}

/// Returns whether this thread leads a region and has no job posted.
pub(super) fn leads() -> bool {
    matches!(ROLE.get(), Role::Leader(_))
}

/// Returns whether this thread works on an item of a region; work that it starts then stays on this thread.
pub(super) fn in_item() -> bool {
    matches!(ROLE.get(), Role::Item)
}

/// Keeps all work of this thread on this thread until the result is dropped.
pub(super) fn alone() -> impl Drop {
    set(&ROLE, Role::Item)
}

/// Returns `f(i, scratch)` for `0..count`, computed by the team that this thread leads; None if it leads none.
pub(super) fn share<S, R: Send>(
    count: usize,
    scratch: &(impl Fn() -> S + Sync),
    f: &(impl Fn(usize, &mut S) -> R + Sync),
) -> Option<Vec<R>> {
    let Role::Leader(team) = ROLE.get() else { return None };
    // Until the last helper has left the job: what runs on this thread while it waits must not post another.
    let _role = set(&ROLE, Role::Item);
    // SAFETY: set by `lead`, which keeps the team for as long.
    Some(unsafe { &*team }.map(count, scratch, f))
}

/// Runs `f` as the leader of `helpers` helpers, or alone if another region is active.
pub(super) fn lead<R>(helpers: usize, f: impl FnOnce() -> R) -> R {
    if ACTIVE.compare_exchange(false, true, SeqCst, SeqCst).is_err() {
        return f();
    }
    let _active = OnDrop(|| ACTIVE.store(false, SeqCst));
    let team = Arc::new_cyclic(|this| Team::new(this.clone()));
    let _member = set(&MEMBER, Arc::as_ptr(&team));
    (0..helpers).for_each(|_| team.call_helper());
    // Also when `f` panics; otherwise the helpers would wait for ever.
    let _end = OnDrop(|| team.over.store(true, SeqCst));
    let _role = set(&ROLE, Role::Leader(Arc::as_ptr(&team)));
    f()
}

/// Waits a moment: spins at first, then runs other jobs of the pool or yields.
fn pause(waited: &mut u32) {
    *waited = waited.saturating_add(1);
    if *waited < PATIENCE {
        std::hint::spin_loop();
    } else if rayon::yield_now() != Some(rayon::Yield::Executed) {
        // Not a thread of a pool, or the pool has nothing to do.
        std::thread::yield_now();
    }
}

impl Team {
    fn new(this: Weak<Team>) -> Self {
        Self {
            job: UnsafeCell::new(None),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            missing: AtomicUsize::new(0),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            this,
        }
    }

    /// Spawns a helper in the current pool. The leader does not wait for it: at the end of the region it may be busy with another job.
    fn call_helper(&self) {
        if let Some(team) = self.this.upgrade() {
            rayon::spawn(move || team.help());
        }
    }

    fn help(&self) {
        if MEMBER.get() == std::ptr::from_ref(self) {
            // A thread of the team that waits for something runs other jobs of the pool: this is one.
            self.missing.fetch_add(1, SeqCst);
            return;
        }
        let _member = set(&MEMBER, std::ptr::from_ref(self));
        let mut waited = 0u32;
        while !self.over.load(SeqCst) {
            if !self.open.load(SeqCst) {
                pause(&mut waited);
                continue;
            }
            self.inside.fetch_add(1, SeqCst);
            let mut found = false;
            let leave = OnDrop(|| {
                self.inside.fetch_sub(1, SeqCst);
            });
            // Read again now that the leader sees a helper inside: an open job stays valid.
            if self.open.load(SeqCst) {
                let _role = set(&ROLE, Role::Item);
                // SAFETY: the leader writes only while nobody is inside of a closed job, and keeps what `data` points
                // to until then.
                let call = || unsafe { (*self.job.get()).is_some_and(|job| (job.call)(job.data, &self.next)) };
                match catch_unwind(AssertUnwindSafe(call)) {
                    Ok(some) => found = some,
                    Err(panic) => {
                        self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                        self.panicked.store(true, SeqCst);
                    }
                }
            }
            drop(leave);
            // A job stays open without items while others work on its last ones.
            if found {
                waited = 0;
            } else {
                pause(&mut waited);
            }
        }
    }

    /// Has `work` called by the leader and all helpers, with a counter that numbers items. A panic of a helper is passed on.
    fn post<F: Fn(&AtomicUsize) -> bool + Sync>(&self, work: &F) {
        unsafe fn call<F: Fn(&AtomicUsize) -> bool>(data: *const (), next: &AtomicUsize) -> bool {
            // SAFETY: `data` is the `work` of `post`.
            unsafe { (*data.cast::<F>())(next) }
        }
        if self.missing.load(Relaxed) > 0 {
            (0..self.missing.swap(0, SeqCst)).for_each(|_| self.call_helper());
        }
        self.next.store(0, SeqCst);
        let job = Job { data: std::ptr::from_ref(work).cast(), call: call::<F> };
        // SAFETY: the job is closed and nobody is inside: so the last `post` left it.
        unsafe { *self.job.get() = Some(job) };
        self.open.store(true, SeqCst);
        // Also when `work` panics here.
        let close = OnDrop(|| {
            self.open.store(false, SeqCst);
            let mut waited = 0;
            while self.inside.load(SeqCst) != 0 {
                pause(&mut waited);
            }
        });
        work(&self.next);
        drop(close);
        if self.panicked.swap(false, SeqCst)
            && let Some(panic) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            resume_unwind(panic);
        }
    }

    fn map<S, R: Send>(
        &self,
        count: usize,
        scratch: &(impl Fn() -> S + Sync),
        f: &(impl Fn(usize, &mut S) -> R + Sync),
    ) -> Vec<R> {
        struct Slots<R>(*mut MaybeUninit<R>);
        // SAFETY: each slot is written once, by the thread that took its number.
        unsafe impl<R: Send> Sync for Slots<R> {}
        impl<R> Slots<R> {
            fn at(&self, index: usize) -> *mut MaybeUninit<R> {
                self.0.wrapping_add(index)
            }
        }
        let mut results: Vec<MaybeUninit<R>> = Vec::with_capacity(count);
        results.resize_with(count, MaybeUninit::uninit);
        let (slots, done) = (Slots(results.as_mut_ptr()), AtomicUsize::new(0));
        self.post(&|next: &AtomicUsize| {
            let (mut own, mut mine) = (None, 0);
            loop {
                let i = next.fetch_add(1, Relaxed);
                if i >= count {
                    break;
                }
                let result = f(i, own.get_or_insert_with(scratch));
                // SAFETY: below `count`, and nobody else has this number.
                unsafe { (*slots.at(i)).write(result) };
                mine += 1;
            }
            done.fetch_add(mine, SeqCst);
            mine > 0
        });
        assert_eq!(done.load(SeqCst), count, "every item has a result");
        // SAFETY: all of them were written.
        results.into_iter().map(|r| unsafe { r.assume_init() }).collect()
    }
}
