//! One device, its communicator, and the watchdog that ends it.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cudarc::driver::{self, CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::result::{self, NcclStatus};
use cudarc::nccl::sys;
use polygram_domain::Rank;

use super::error::{Detail, NcclError};

/// Bytes of what the ranks of a communicator must all know.
pub(super) const ID_BYTES: usize = 128;
/// Magic number of a configuration (NCCL_API_MAGIC of nccl.h).
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// The version whose configuration the bindings have; newer libraries read it too.
const CONFIG_VERSION: u32 = 22_200;
/// Time between two looks at work of the device.
const LOOK: Duration = Duration::from_micros(20);

/// A communicator that any thread may abort: whoever uses it holds the lock, and no use of it waits.
struct Communicator {
    /// `None` once aborted.
    raw: Mutex<Option<Raw>>,
    /// The watchdog has aborted it.
    expired: AtomicBool,
}

struct Raw(sys::ncclComm_t);

// SAFETY: a communicator may be used from any thread, by one at a time; the lock around it sees to that.
unsafe impl Send for Raw {}

impl Communicator {
    fn abort(&self) {
        if let Some(Raw(raw)) = lock(&self.raw).take() {
            // SAFETY: `raw` is a communicator; nobody uses it, as the lock is held, and nobody will, as it was taken.
            if let Err(error) = unsafe { result::comm_abort(raw) } {
                tracing::debug!(code = ?error.0, "a communicator could not be aborted");
            }
        }
    }

    /// Does `work` with the communicator, unless it was aborted.
    fn with<R>(&self, work: impl FnOnce(sys::ncclComm_t) -> R) -> Result<R, Detail> {
        match lock(&self.raw).as_ref() {
            Some(Raw(raw)) => Ok(work(*raw)),
            None => Err(Detail("the communicator was aborted".to_string())),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // All work is waited for or given up before: nothing is lost by an abort, and it cannot hang.
        self.abort();
    }
}

#[derive(Default)]
struct Watch {
    deadline: Option<Instant>,
    done: bool,
}

/// A thread that aborts the communicator when a deadline passes, also while the rank's own thread is inside CUDA.
struct Watchdog {
    watch: Arc<(Mutex<Watch>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(communicator: Arc<Communicator>) -> std::io::Result<Watchdog> {
        let watch = Arc::new((Mutex::new(Watch::default()), Condvar::new()));
        let seen = Arc::clone(&watch);
        let body = move || {
            let (state, changed) = &*seen;
            let mut watch = lock(state);
            while !watch.done {
                let left = watch.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                watch = match left {
                    None => changed.wait(watch).unwrap_or_else(PoisonError::into_inner),
                    Some(Duration::ZERO) => {
                        watch.deadline = None;
                        drop(watch);
                        communicator.expired.store(true, Ordering::SeqCst);
                        communicator.abort();
                        lock(state)
                    }
                    Some(left) => changed.wait_timeout(watch, left).unwrap_or_else(PoisonError::into_inner).0,
                };
            }
        };
        let thread = thread::Builder::new().name("nccl watchdog".to_string()).spawn(body)?;
        Ok(Watchdog { watch, thread: Some(thread) })
    }

    fn set(&self, change: impl FnOnce(&mut Watch)) {
        let (state, changed) = &*self.watch;
        change(&mut lock(state));
        changed.notify_all();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.set(|watch| watch.done = true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::debug!("the watchdog panicked");
        }
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device with a stream of its own; connected to those of the other ranks once [`Device::connect`] was called.
pub(super) struct Device {
    stream: Arc<CudaStream>,
    joined: Option<(Watchdog, Arc<Communicator>)>,
}

/// What rank 0 tells the others.
pub(super) fn unique_id() -> Result<Vec<u8>, NcclError> {
    let id = result::get_uniqueid().map_err(|error| Detail::from(error.0));
    let id = id.map_err(NcclError::refused("making a communicator's name"))?;
    Ok(id.internal.iter().map(|byte| *byte as u8).collect())
}

/// Whether work of the device goes on; what looks at the group between two looks at the device.
pub(super) type Keep<'a, E> = &'a mut dyn FnMut() -> Result<(), E>;

impl Device {
    pub(super) fn open(ordinal: usize) -> Result<Device, NcclError> {
        // SAFETY: both only try to load a library, whose constructors are those of the vendor.
        let (cuda, nccl) =
            unsafe { (driver::sys::is_culib_present(), cudarc::nccl::sys::is_culib_present()) };
        match (cuda, nccl) {
            (false, _) => return Err(NcclError::Absent { library: "CUDA" }),
            (_, false) => return Err(NcclError::Absent { library: "NCCL" }),
            _ => {}
        }
        let open = || -> Result<_, driver::DriverError> { CudaContext::new(ordinal)?.new_stream() };
        let stream = open().map_err(Detail::from).map_err(NcclError::refused("opening the device"))?;
        Ok(Device { stream, joined: None })
    }

    /// Makes the communicator: all ranks at once, or an error within `time`.
    pub(super) fn connect(
        &mut self,
        id: [u8; ID_BYTES],
        (rank, world_size): (Rank, u32),
        time: Duration,
    ) -> Result<(), NcclError> {
        let refused = NcclError::refused("joining a communicator");
        self.stream.context().bind_to_thread().map_err(Detail::from).map_err(&refused)?;
        const UNSET: c_int = c_int::MIN;
        let mut config = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: CONFIG_MAGIC,
            version: CONFIG_VERSION,
            blocking: 0,
            cgaClusterSize: UNSET,
            minCTAs: UNSET,
            maxCTAs: UNSET,
            netName: std::ptr::null(),
            splitShare: UNSET,
        };
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as _) };
        let mut raw = std::ptr::null_mut();
        let (ranks, rank) = (world_size as c_int, rank.0 as c_int);
        // SAFETY: `raw` and `config` live through the call, and the configuration has the size and version it states.
        let begun = unsafe { result::comm_init_rank_config(&mut raw, ranks, id, rank, &mut config) };
        begun.map_err(|error| Detail::from(error.0)).map_err(&refused)?;
        let (raw, expired) = (Mutex::new(Some(Raw(raw))), AtomicBool::new(false));
        let communicator = Arc::new(Communicator { raw, expired });
        let watchdog = Watchdog::start(Arc::clone(&communicator)).map_err(Detail::from).map_err(&refused)?;
        self.joined = Some((watchdog, communicator));
        self.guarded(time, |device| device.settle(&mut || Ok::<(), Detail>(()))).map_err(refused)
    }

    /// Does `work` under the watchdog: after `time` the communicator is aborted, and `work` sees it.
    pub(super) fn guarded<R>(&mut self, time: Duration, work: impl FnOnce(&mut Device) -> R) -> R {
        self.watch(Some(Instant::now() + time));
        let answer = work(self);
        self.watch(None);
        answer
    }

    fn watch(&self, deadline: Option<Instant>) {
        if let Some((watchdog, _)) = &self.joined {
            watchdog.set(|watch| watch.deadline = deadline);
        }
    }

    /// Whether the watchdog has ended the communicator.
    pub(super) fn is_expired(&self) -> bool {
        self.joined.as_ref().is_some_and(|(_, communicator)| communicator.expired.load(Ordering::SeqCst))
    }

    fn communicator(&self) -> Result<&Communicator, Detail> {
        let joined = self.joined.as_ref().ok_or_else(|| Detail("no communicator yet".to_string()))?;
        Ok(&joined.1)
    }

    /// Waits until the communicator has nothing more to prepare.
    fn settle<E: From<Detail>>(&self, keep: Keep<'_, E>) -> Result<(), E> {
        loop {
            let mut state = sys::ncclResult_t::ncclSuccess;
            // SAFETY: the communicator is one that was not aborted, and `state` outlives the call.
            let ask = |raw| unsafe { sys::ncclCommGetAsyncError(raw, &mut state) }.result();
            self.communicator()?.with(ask)?.map_err(|error| Detail::from(error.0))?;
            match state.result().map_err(|error| Detail::from(error.0))? {
                NcclStatus::InProgress => thread::sleep(LOOK),
                NcclStatus::Success | NcclStatus::NumResults => return Ok(()),
            }
            keep()?;
        }
    }

    /// Sends and receives, all at once: bytes to each rank, and as many from each rank as its buffer has. After an error
    /// the communicator is gone.
    pub(super) fn exchange<E: From<Detail>>(
        &self,
        sends: &[(Rank, Vec<u8>)],
        receives: &mut [(Rank, Vec<u8>)],
        keep: Keep<'_, E>,
    ) -> Result<(), E> {
        let cuda = |error: driver::DriverError| Detail::from(error);
        let stream = &self.stream;
        stream.context().bind_to_thread().map_err(cuda)?;
        let staged = sends.iter().map(|(_, bytes)| stream.clone_htod(bytes.as_slice()));
        let staged: Vec<CudaSlice<u8>> = staged.collect::<Result<_, _>>().map_err(cuda)?;
        let landing = receives.iter().map(|(_, bytes)| stream.alloc_zeros::<u8>(bytes.len()));
        let mut landing: Vec<CudaSlice<u8>> = landing.collect::<Result<_, _>>().map_err(cuda)?;
        let communicator = self.communicator()?;
        let to = sends.iter().map(|(rank, _)| *rank).zip(&staged);
        let from = receives.iter().map(|(rank, _)| *rank).zip(&mut landing);
        let begun = communicator.with(|raw| self.enqueue(raw, to, from)).flatten();
        let carried = begun.map_err(E::from).and_then(|()| {
            self.settle(&mut *keep)?;
            let event = stream.record_event(None).map_err(cuda)?;
            while !event.is_complete() {
                communicator.with(drop)?;
                keep()?;
                thread::sleep(LOOK);
            }
            Ok(())
        });
        if carried.is_err() {
            // Nothing may use the staged memory any more when it is given back.
            communicator.abort();
        }
        carried?;
        for ((_, bytes), slice) in receives.iter_mut().zip(&landing) {
            stream.memcpy_dtoh(slice, bytes.as_mut_slice()).map_err(cuda)?;
        }
        Ok(stream.synchronize().map_err(cuda)?)
    }

    /// Hands sends and receives to the device, as one group, without waiting.
    fn enqueue<'a>(
        &self,
        raw: sys::ncclComm_t,
        sends: impl Iterator<Item = (Rank, &'a CudaSlice<u8>)>,
        receives: impl Iterator<Item = (Rank, &'a mut CudaSlice<u8>)>,
    ) -> Result<(), Detail> {
        let kind = sys::ncclDataType_t::ncclUint8;
        let nccl = |error: result::NcclError| Detail::from(error.0);
        let (stream, queue) = (&self.stream, self.stream.cu_stream().cast());
        result::group_start().map_err(nccl)?;
        let mut enqueued = Ok(());
        for (to, slice) in sends {
            let (at, _guard) = slice.device_ptr(stream);
            // SAFETY: `at` is device memory of so many bytes; the caller keeps it until the stream is past this or the
            // communicator is aborted.
            let sent = unsafe { result::send(at as _, slice.len(), kind, to.0 as _, raw, queue) };
            enqueued = enqueued.and(sent.map(drop));
        }
        for (from, slice) in receives {
            let bytes = slice.len();
            let (at, _guard) = slice.device_ptr_mut(stream);
            // SAFETY: as above.
            let received = unsafe { result::recv(at as _, bytes, kind, from.0 as _, raw, queue) };
            enqueued = enqueued.and(received.map(drop));
        }
        let ended = result::group_end().map(drop);
        enqueued.and(ended).map_err(nccl)
    }
}
