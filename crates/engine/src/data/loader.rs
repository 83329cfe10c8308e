//! Batches for training and evaluation, prepared by worker threads while the consumer computes.
//!
//! The consumer hands out batch numbers, a few ahead; a worker that is free takes one, decodes, augments and normalises
//! all its samples into one buffer and sends it back; the consumer puts batches in order. Which worker did what cannot be
//! seen in the result: the order of an epoch depends on (seed, epoch), the augmentation of a sample on (seed, epoch,
//! sample). Buffers return to the pool when a [`Batch`] is dropped. Dropping an [`Epoch`] stops and joins its workers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::dataset::{Dataset, Dice, Scratch};
use super::error::Error;
use super::render::Layout;
use super::rng::permutation;
use super::transform::Augment;

/// How a [`Loader`] walks through a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Samples in a batch; the last batch of an epoch may be smaller, and so may any with skipped broken images.
    pub batch: usize,
    /// Whether each epoch has its own order, drawn from (seed, epoch), or the set's.
    pub order: Order,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Whether an incomplete last batch is left out.
    pub drop_last: bool,
    /// Order of axes.
    pub layout: Layout,
    /// Random changes to each sample.
    pub augment: Augment,
    /// Worker threads; 0 prepares each batch in the consumer's thread when asked for it.
    pub workers: usize,
    /// Batches prepared ahead, at least 1; fewer if they would take more than 256 MiB together.
    pub prefetch: usize,
}

/// The order of samples in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As in the data set.
    #[default]
    Sequential,
    /// Shuffled, differently each epoch.
    Shuffled,
}

impl Default for LoaderOptions {
    /// In order, nothing random, nothing left out: for evaluation. Batches of 128, two workers, four batches ahead.
    fn default() -> Self {
        LoaderOptions {
            batch: 128,
            order: Order::Sequential,
            seed: 0,
            drop_last: false,
            layout: Layout::Nchw,
            augment: Augment::none(),
            workers: 2,
            prefetch: 4,
        }
    }
}

impl LoaderOptions {
    /// Shuffled and augmented, incomplete last batches left out.
    pub fn training(batch: usize, seed: u64, augment: Augment) -> Self {
        LoaderOptions { batch, order: Order::Shuffled, seed, drop_last: true, augment, ..LoaderOptions::default() }
    }

    /// In order and complete.
    pub fn evaluation(batch: usize) -> Self {
        LoaderOptions { batch, ..LoaderOptions::default() }
    }
}

/// Makes epochs of batches out of a data set.
#[derive(Debug, Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
}

/// Prefetched batches take at most this much together, but at least one is always prepared ahead.
const PREFETCH_BYTES: usize = 256 << 20;
/// One batch takes at most this much.
const BATCH_BYTES: usize = 4 << 30;

impl Loader {
    /// Checks that the options suit the data.
    pub fn new(dataset: Arc<Dataset>, options: LoaderOptions) -> Result<Loader, Error> {
        let LoaderOptions { batch, drop_last, .. } = options;
        if batch == 0 {
            return Err(Error::options("batch", "a batch needs at least 1 sample"));
        }
        if drop_last && dataset.len() < batch {
            return Err(Error::options(
                "batch",
                format!("{} samples do not fill one batch of {batch}; use smaller batches or more data", dataset.len()),
            ));
        }
        let bytes = dataset.sample_len().checked_mul(batch.min(dataset.len().max(1)) * size_of::<f32>());
        if bytes.is_none_or(|bytes| bytes > BATCH_BYTES) {
            return Err(Error::options(
                "batch",
                format!(
                    "{batch} samples of {:?} take more than {BATCH_BYTES} bytes; use smaller batches",
                    dataset.shape()
                ),
            ));
        }
        dataset.check_augment(&options.augment)?;
        Ok(Loader { dataset, options })
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The options.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Batches in an epoch. (One whose images are all broken and skipped does not come.)
    pub fn batches(&self) -> usize {
        let (n, batch) = (self.dataset.len(), self.options.batch);
        if self.options.drop_last { n / batch } else { n.div_ceil(batch) }
    }

    /// All batches of an epoch.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_from(epoch, 0)
    }

    /// The batches of an epoch from number `first` on: what an interrupted run still has to see, bit for bit.
    pub fn epoch_from(&self, epoch: u64, first: usize) -> Epoch {
        let n = self.dataset.len();
        let order = match self.options.order {
            Order::Sequential => (0..n as u32).collect(),
            Order::Shuffled => permutation(n, self.options.seed, epoch),
        };
        let batches = self.batches();
        let plan = Arc::new(Plan { dataset: self.dataset.clone(), options: self.options.clone(), order, epoch });
        Epoch::start(plan, first, batches)
    }
}

/// Some samples, ready to be fed.
#[derive(Debug)]
pub struct Batch {
    /// The samples, one after another.
    pub x: Vec<f32>,
    /// Their labels.
    pub labels: Vec<u32>,
    /// Their positions in the data set.
    pub indices: Vec<u32>,
    /// Number of this batch in the epoch, from 0.
    pub number: usize,
    /// The shape of [`x`](Self::x), in the order that the loader's layout says.
    pub shape: [usize; 4],
    pool: Option<Sender<Vec<f32>>>,
}

impl Batch {
    /// Number of samples.
    pub fn n(&self) -> usize {
        self.labels.len()
    }

    /// Takes the samples out, for a consumer that keeps them; the buffer is then not reused.
    pub fn into_x(mut self) -> Vec<f32> {
        std::mem::take(&mut self.x)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool
            && self.x.capacity() > 0
        {
            // Fails when the epoch is over; then the buffer is simply freed.
            let _ = pool.send(std::mem::take(&mut self.x));
        }
    }
}

/// What the workers of an epoch share.
struct Plan {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
    order: Vec<u32>,
    epoch: u64,
}

impl Plan {
    /// Prepares batch `number` in `x`. `None` if `stop` was raised meanwhile.
    fn prepare(
        &self,
        number: usize,
        mut x: Vec<f32>,
        scratch: &mut Scratch,
        stop: &AtomicBool,
    ) -> Option<Result<Batch, Error>> {
        let LoaderOptions { batch, layout, ref augment, seed, .. } = self.options;
        let start = (number * batch).min(self.order.len());
        let members = &self.order[start..(start + batch).min(self.order.len())];
        let len = self.dataset.sample_len();
        x.resize(members.len() * len, 0.0);
        let (mut labels, mut indices) = (Vec::with_capacity(members.len()), Vec::with_capacity(members.len()));
        let dice = (!augment.is_none()).then_some(Dice { augment, seed, epoch: self.epoch });
        for &index in members {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            // A broken sample leaves its place to the next one.
            let place = labels.len() * len;
            let rendered =
                self.dataset.render(index as usize, dice.as_ref(), layout, &mut x[place..place + len], scratch);
            match rendered {
                Ok(()) => {
                    labels.push(self.dataset.labels().get(index as usize).copied().unwrap_or_default());
                    indices.push(index);
                }
                Err(error) => {
                    if let Err(error) = self.dataset.note_broken(error) {
                        return Some(Err(error));
                    }
                }
            }
        }
        x.truncate(labels.len() * len);
        let [c, h, w] = self.dataset.shape();
        let shape = match layout {
            Layout::Nchw => [labels.len(), c, h, w],
            Layout::Nhwc => [labels.len(), h, w, c],
        };
        Some(Ok(Batch { x, labels, indices, number, shape, pool: None }))
    }
}

/// A batch to prepare, and a buffer to do it in.
struct Job {
    number: usize,
    buffer: Vec<f32>,
}

/// The batches of one epoch, in order. After an error there are no more.
pub struct Epoch {
    plan: Arc<Plan>,
    /// The next batch to yield, and the number after the last.
    next: usize,
    end: usize,
    /// Buffers that came back.
    pool: (Sender<Vec<f32>>, Receiver<Vec<f32>>),
    /// `None` when batches are prepared in this thread.
    crew: Option<Crew>,
    scratch: Scratch,
}

/// The worker threads of an epoch and the lines to them.
struct Crew {
    jobs: Option<Sender<Job>>,
    results: Receiver<(usize, Result<Batch, Error>)>,
    /// The next batch to hand out.
    handed_out: usize,
    /// Batches that came before their turn.
    early: BTreeMap<usize, Result<Batch, Error>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Epoch {
    fn start(plan: Arc<Plan>, first: usize, end: usize) -> Epoch {
        let options = &plan.options;
        let batch_bytes = options.batch.min(plan.order.len()) * plan.dataset.sample_len() * size_of::<f32>();
        let ahead = options.prefetch.min(PREFETCH_BYTES / batch_bytes.max(1)).max(1);
        let workers = options.workers.min(ahead).min(end.saturating_sub(first));
        let crew = Crew::hire(&plan, workers, first);
        let mut epoch = Epoch { plan, next: first, end, pool: channel(), crew, scratch: Scratch::default() };
        for _ in 0..ahead {
            epoch.hand_out();
        }
        epoch
    }

    /// Number of the batch that comes next.
    pub fn position(&self) -> usize {
        self.next
    }

    fn buffer(&self) -> Vec<f32> {
        self.pool.1.try_recv().unwrap_or_default()
    }

    fn hand_out(&mut self) {
        let buffer = self.buffer();
        if let Some(crew) = &mut self.crew
            && crew.handed_out < self.end
            && let Some(jobs) = &crew.jobs
        {
            let _ = jobs.send(Job { number: crew.handed_out, buffer });
            crew.handed_out += 1;
        }
    }

    fn receive(&mut self, number: usize) -> Result<Batch, Error> {
        let Some(crew) = &mut self.crew else {
            let buffer = self.pool.1.try_recv().unwrap_or_default();
            let never = AtomicBool::new(false);
            let prepared = self.plan.prepare(number, buffer, &mut self.scratch, &never);
            return prepared.unwrap_or(Err(Error::WorkersLost { batch: number }));
        };
        loop {
            if let Some(result) = crew.early.remove(&number) {
                return result;
            }
            match crew.results.recv() {
                Ok((came, result)) => drop(crew.early.insert(came, result)),
                Err(_) => return Err(Error::WorkersLost { batch: number }),
            }
        }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            let number = self.next;
            self.next += 1;
            let result = self.receive(number);
            self.hand_out();
            match result {
                Ok(batch) if batch.n() == 0 => {}
                Ok(mut batch) => {
                    batch.pool = Some(self.pool.0.clone());
                    return Some(Ok(batch));
                }
                Err(error) => {
                    self.end = self.next;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Crew {
    /// Starts workers; `None` if there are to be none, or the system gives none.
    fn hire(plan: &Arc<Plan>, workers: usize, first: usize) -> Option<Crew> {
        let (jobs, inbox) = channel::<Job>();
        let (outbox, results) = channel();
        let inbox = Arc::new(Mutex::new(inbox));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::with_capacity(workers);
        for i in 0..workers {
            let (plan, inbox, outbox, stop) = (plan.clone(), inbox.clone(), outbox.clone(), stop.clone());
            let work = move || {
                let mut scratch = Scratch::default();
                loop {
                    // The lock is held while waiting; the others wait for the lock instead, which is as good.
                    let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Job { number, buffer }) = job else { return };
                    let Some(result) = plan.prepare(number, buffer, &mut scratch, &stop) else { return };
                    if outbox.send((number, result)).is_err() {
                        return;
                    }
                }
            };
            match std::thread::Builder::new().name(format!("data-{i}")).spawn(work) {
                Ok(thread) => threads.push(thread),
                Err(_) => break,
            }
        }
        let (jobs, early) = (Some(jobs), BTreeMap::new());
        (!threads.is_empty()).then_some(Crew { jobs, results, handed_out: first, early, stop, threads })
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Workers that wait wake up because nobody can send any more.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Random, open};
    use super::*;

    fn digits() -> Arc<Dataset> {
        Arc::new(open("digits", &Options { limit: Some(103), ..Options::train() }).unwrap())
    }

    /// Number, indices, labels and the bits of the samples of a batch.
    type Seen = (usize, Vec<u32>, Vec<u32>, Vec<u32>);

    fn everything(loader: &Loader, epoch: u64, first: usize) -> Vec<Seen> {
        loader
            .epoch_from(epoch, first)
            .map(|batch| {
                let batch = batch.unwrap();
                assert_eq!(batch.x.len(), batch.shape.iter().product::<usize>());
                let bits = batch.x.iter().map(|v| v.to_bits()).collect();
                (batch.number, batch.indices.clone(), batch.labels.clone(), bits)
            })
            .collect()
    }

    #[test]
    fn batches_do_not_depend_on_workers_or_where_an_epoch_starts() {
        let augment = Augment { pad_crop: Some(2), flip: true, cutout: Some(3), ..Augment::none() };
        let make = |workers, prefetch| {
            let options = LoaderOptions { workers, prefetch, ..LoaderOptions::training(10, 5, augment.clone()) };
            Loader::new(digits(), options).unwrap()
        };
        let reference = everything(&make(0, 1), 3, 0);
        assert_eq!(reference.len(), 10);
        for (workers, prefetch) in [(1, 1), (1, 4), (2, 2), (5, 9)] {
            let loader = make(workers, prefetch);
            assert_eq!(everything(&loader, 3, 0), reference);
            for first in [1, 4, 9, 10, 99] {
                assert_eq!(everything(&loader, 3, first), reference[first.min(10)..]);
            }
        }
        let other = everything(&make(1, 2), 4, 0);
        assert_ne!(other[0].1, reference[0].1);
        // Another epoch also augments the same sample differently.
        let image = |epoch: &[Seen], sample: u32| {
            epoch
                .iter()
                .find_map(|b| b.1.iter().position(|&i| i == sample).map(|at| b.3[at * 64..(at + 1) * 64].to_vec()))
        };
        let changed =
            (0..90).filter(|&i| image(&other, i).is_some() && image(&other, i) != image(&reference, i)).count();
        assert!(changed > 50, "{changed}");
    }

    #[test]
    fn every_sample_comes_once_and_last_batches_are_kept_or_dropped() {
        let set = digits();
        let loader = Loader::new(set.clone(), LoaderOptions::evaluation(10)).unwrap();
        let batches = everything(&loader, 0, 0);
        assert_eq!((batches.len(), loader.batches(), batches[10].1.len()), (11, 11, 3));
        let order: Vec<u32> = batches.iter().flat_map(|b| b.1.clone()).collect();
        assert!(order.iter().enumerate().all(|(i, &s)| s == i as u32));
        let labels: Vec<u32> = batches.iter().flat_map(|b| b.2.clone()).collect();
        assert_eq!(labels, set.labels());
        let shuffled = LoaderOptions { order: Order::Shuffled, ..LoaderOptions::evaluation(10) };
        let mut order: Vec<u32> =
            everything(&Loader::new(set, shuffled).unwrap(), 0, 0).iter().flat_map(|b| b.1.clone()).collect();
        order.sort_unstable();
        assert!(order.len() == 103 && order.iter().enumerate().all(|(i, &s)| s == i as u32));
    }

    #[test]
    fn layouts_hold_the_same_numbers() {
        let random = Random { shape: [3, 5, 4], count: 9, ..Random::default() };
        let set = Arc::new(open("random", &Options { random, ..Options::default() }).unwrap());
        let batch = |layout| {
            let options = LoaderOptions { layout, augment: Augment::cifar(), ..LoaderOptions::evaluation(9) };
            Loader::new(set.clone(), options).unwrap().epoch(0).next().unwrap().unwrap()
        };
        let (first, last) = (batch(Layout::Nchw), batch(Layout::Nhwc));
        assert_eq!((first.shape, last.shape), ([9, 3, 5, 4], [9, 5, 4, 3]));
        for n in 0..9 {
            for c in 0..3 {
                for p in 0..20 {
                    assert_eq!(first.x[(n * 3 + c) * 20 + p], last.x[(n * 20 + p) * 3 + c]);
                }
            }
        }
    }

    #[test]
    fn dropping_an_epoch_stops_its_workers_and_buffers_are_reused() {
        let loader = Loader::new(digits(), LoaderOptions { workers: 3, ..LoaderOptions::evaluation(2) }).unwrap();
        for taken in 0..5 {
            let mut epoch = loader.epoch(0);
            let kept: Vec<Batch> = epoch.by_ref().take(taken).map(|b| b.unwrap()).collect();
            assert_eq!(epoch.position(), taken);
            drop(epoch);
            // A batch outlives its epoch.
            assert!(kept.iter().all(|b| b.x.len() == 128));
        }
        let mut addresses = std::collections::BTreeSet::new();
        for batch in loader.epoch(0) {
            addresses.insert(batch.unwrap().x.as_ptr() as usize);
        }
        assert!(addresses.len() <= 6, "{} buffers for {} batches", addresses.len(), loader.batches());
        let kept = loader.epoch(0).next().unwrap().unwrap().into_x();
        assert_eq!(kept.len(), 128);
    }

    #[test]
    fn one_core_prepares_far_more_images_than_training_eats() {
        let random = Random { count: 2_000, ..Random::default() };
        let set = Arc::new(open("random", &Options { random, ..Options::default() }).unwrap());
        let options = LoaderOptions { workers: 0, ..LoaderOptions::training(100, 1, Augment::cifar()) };
        let loader = Loader::new(set, options).unwrap();
        // The best of some tries, because other tests run beside this one. It takes about 20 ms; 400 ms are 5,000/s.
        let seconds = (0..5).map(|epoch| {
            let start = std::time::Instant::now();
            assert_eq!(loader.epoch(epoch).count(), 20);
            start.elapsed().as_secs_f64()
        });
        let best = seconds.fold(f64::INFINITY, f64::min);
        assert!(best < 0.4, "{:.0} images/s", 2_000.0 / best);
    }

    #[test]
    fn unusable_options_are_refused() {
        let make = |options| Loader::new(digits(), options).map(|_| ());
        assert!(make(LoaderOptions { batch: 0, ..LoaderOptions::default() }).is_err());
        assert!(make(LoaderOptions::training(104, 0, Augment::none())).is_err());
        assert!(make(LoaderOptions::training(103, 0, Augment { pad_crop: Some(9), ..Augment::none() })).is_err());
        assert!(make(LoaderOptions { batch: usize::MAX, ..LoaderOptions::default() }).is_ok());
        let random = Random { shape: [3, 4096, 4096], count: 1 << 20, ..Random::default() };
        let large = Arc::new(open("random", &Options { random, ..Options::default() }).unwrap());
        assert!(Loader::new(large, LoaderOptions::evaluation(1 << 20)).is_err());
    }
}
