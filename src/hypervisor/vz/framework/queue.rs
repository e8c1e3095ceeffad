//! A value that is made, used and dropped on one serial queue: how this folder keeps the framework's rule.

use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use objc2::rc::autoreleasepool;
use std::sync::Arc;

/// A value that only one queue's work may look at.
struct Confined<T>(T);

// SAFETY: The value itself does not cross threads at the same time: `OnQueue` gives no reference to it but inside
// work of its serial queue, where one piece of work ends before the next begins. GCD's hand-over from one worker
// thread to the next orders their memory accesses. What is confined is not bound to a thread, only to the queue.
unsafe impl<T> Send for Confined<T> {}
// SAFETY: As above; a shared `Confined` gives access to the value on the queue alone.
unsafe impl<T> Sync for Confined<T> {}

/// A value of its own serial queue. Whoever holds this can ask for work on the value, from any thread; nobody can
/// take the value, or a reference to it, away: the work is `Send`, and what it gives back has to be as well.
pub(super) struct OnQueue<T: 'static> {
    queue: DispatchRetained<DispatchQueue>,
    /// `None` only while it is dropped.
    value: Option<Arc<Confined<T>>>,
}

impl<T> OnQueue<T> {
    /// Makes the queue, then the value on it. Blocks until that is done.
    pub(super) fn make<E: Send>(
        label: &str,
        make: impl FnOnce(&DispatchQueue) -> Result<T, E> + Send,
    ) -> Result<Self, E> {
        let queue = DispatchQueue::new(label, DispatchQueueAttr::SERIAL);
        let own = &queue;
        let mut made = None;
        queue.exec_sync(|| made = Some(autoreleasepool(|_| make(own).map(|value| Arc::new(Confined(value))))));
        let value = made.expect("the queue ran its work before it returned")?;
        Ok(Self { queue, value: Some(value) })
    }

    /// Has the work done on the queue, after what was asked before. Does not wait for it.
    pub(super) fn run(&self, work: impl FnOnce(&T) + Send + 'static) {
        let value = self.value.clone().expect("it is there until it is dropped");
        self.queue.exec_async(move || {
            autoreleasepool(|_| work(&value.0));
            drop(value);
        });
    }
}

impl<T> Drop for OnQueue<T> {
    /// The last reference has to go on the queue: ours is given to it, so that none is left to be dropped here.
    fn drop(&mut self) {
        let value = self.value.take();
        self.queue.exec_async(move || autoreleasepool(|_| drop(value)));
    }
}
