//! Plans of whole runs.

use super::*;
use crate::Rank;
use crate::rank_layout::RankLayout;
use crate::run_file::RunFile;
use crate::run_spec::{Determinism, DeviceKind};

const LITE: &str = include_str!("../../../../configs/longcat-flash-lite.toml");
const TINY: &str = include_str!("../../../../configs/tiny.toml");

fn spec_of(text: &str, sets: &[&str]) -> RunSpec {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    RunFile::parse(text, "test", &sets).and_then(|file| file.resolve()).unwrap()
}

fn refusal(sets: &[&str]) -> String {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    RunFile::parse(TINY, "test", &sets).and_then(|file| file.resolve()).unwrap_err().to_string()
}

/// LongCat-Flash-Lite's published sizes (arXiv 2601.21204 and its model card).
#[test]
fn longcat_flash_lite_has_its_published_size() {
    let spec = spec_of(LITE, &[]);
    let counts = count_parameters(&spec.model);
    assert_eq!(counts.total, 68_562_459_648);
    assert_eq!(counts.ngram_tables, 31_406_985_216);
    assert_eq!(counts.ngram_projections, 9_437_184);
    assert_eq!(counts.attention, 915_726_336);
    assert_eq!(counts.dense_ffn, 1_585_446_912);
    assert_eq!(counts.experts, 33_822_867_456);
    assert_eq!(counts.routers, 16_515_072);
    assert_eq!(counts.norms, 175_104);
    assert_eq!(counts.activated_min / 1_000_000, 2_920);
    assert_eq!(counts.activated_max / 1_000_000, 4_505);
    assert_eq!(counts.table_share_warning(), None);
    assert_eq!(plan(&spec).table_rows, 122_683_536);
}

/// Its run file fits: the device's part, and all that a worker holds anywhere.
#[test]
fn longcat_flash_lite_fits_its_devices() {
    let spec = spec_of(LITE, &[]);
    let memory = plan(&spec).memory;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let (device, host) = (gib(memory.worker_device_bytes), gib(memory.worker_host_bytes));
    println!("device {device:.1} GiB, host {host:.1} GiB");
    assert_eq!(memory.worker_limit_bytes, Some(80 << 30));
    assert!(memory.worker_bytes <= 80 << 30, "{memory:?}");
    assert_eq!(misfit(&spec, Operands::Bf16), None);
    let whole = spec_of(LITE, &["topology.expert_parallel=1", "training.determinism=elastic"]);
    let misfit = misfit(&whole, Operands::Bf16).unwrap();
    assert!(misfit.needed_bytes > 200 << 30 && misfit.cured_bytes <= 80 << 30, "{misfit:?}");
    assert!(misfit.cure.iter().any(|set| set.starts_with("topology.expert_parallel=")), "{misfit:?}");
    let cure: Vec<&str> = misfit.cure.iter().map(String::as_str).collect();
    let cured =
        spec_of(LITE, &[&["topology.expert_parallel=1", "training.determinism=elastic"], &cure[..]].concat());
    assert_eq!(super::misfit(&cured, Operands::Bf16), None);
    assert_eq!(memory_plan(&cured, Operands::Bf16).worker_device_bytes, misfit.cured_bytes);
}

/// Weights, moments and staging against what ranks really hold.
#[test]
fn parts_are_those_of_the_ranks_layout() {
    for (workers, expert_parallel) in [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4)] {
        let sets = [
            format!("topology.workers={workers}"),
            format!("topology.expert_parallel={expert_parallel}"),
            "model.hidden_size=240".to_owned(),
            "model.ffn_hidden_size=512".to_owned(),
        ];
        let spec = spec_of(TINY, &sets.each_ref().map(String::as_str));
        let memory = memory_plan(&spec, Operands::Single);
        let layouts: Vec<RankLayout> = (0..workers)
            .map(|rank| RankLayout::of(&spec.model, &spec.topology, Rank(rank)).unwrap())
            .collect();
        for layout in &layouts {
            assert_eq!(memory.worker_weights_bytes, 4 * layout.len() as u64, "{sets:?}");
        }
        // Weights of all, moments of all but the selection biases.
        let own = layouts.iter().map(RankLayout::own_len).sum::<usize>() as u64;
        let trained = own - u64::from(spec.model.num_layers * spec.model.routed_experts());
        let workers = u64::from(workers);
        assert_eq!(memory.worker_optimizer_bytes, (8 * trained).div_ceil(workers), "{sets:?}");
        assert_eq!(memory.worker_snapshot_bytes, (4 * own + 8 * trained).div_ceil(workers), "{sets:?}");
    }
}

/// What each setting does to each part, in the numbers that the engine's buffers have.
#[test]
fn gradients_follow_determinism_micro_batches_and_expert_groups() {
    let gradients = |sets: &[&str]| {
        let all = [&["device.engine=torch", "topology.workers=2", "training.cells=8"][..], sets].concat();
        let spec = spec_of(TINY, &all);
        let counts = count_parameters(&spec.model);
        let biases = 2 * u64::from(spec.model.routed_experts());
        let (all, experts) = (counts.total - counts.ngram_tables + biases, counts.experts);
        (memory_plan(&spec, Operands::Single).worker_gradients_bytes / 4, all - experts, experts)
    };
    let (bytes, shared, experts) = gradients(&[]);
    assert_eq!(bytes, 3 * (shared + experts), "a tree over 4 micro-batches has 3 nodes at most");
    let (bytes, ..) = gradients(&["training.determinism=topology"]);
    assert_eq!(bytes, 2 * (shared + experts));
    let (bytes, ..) = gradients(&["training.cells=2"]);
    assert_eq!(bytes, shared + experts);
    let (bytes, ..) = gradients(&["topology.expert_parallel=2"]);
    assert_eq!(bytes, 3 * shared + 5 * (experts / 2), "two trees of two nodes, and the one that is made");
    let (bytes, ..) = gradients(&["topology.expert_parallel=2", "training.determinism=topology"]);
    assert_eq!(bytes, 2 * (shared + experts / 2));
}

#[test]
fn activations_follow_recomputation_compute_and_micro_batches() {
    let activations = |sets: &[&str], operands| {
        let all = [&["model.num_layers=6", "training.seq_len=512"][..], sets].concat();
        memory_plan(&spec_of(TINY, &all), operands).worker_activations_bytes
    };
    let plain = activations(&[], Operands::Single);
    assert!(activations(&["training.recompute=true"], Operands::Single) < plain / 2);
    assert!(activations(&["training.compute=bf16"], Operands::Bf16) < plain);
    let double = activations(&["training.micro_batch_size=4"], Operands::Single);
    assert!(double > plain * 19 / 10 && double <= plain * 2, "{double} for {plain}");
    assert_eq!(activations(&["device.engine=drill"], Operands::Single), 0);
}

/// Rows of each token's choices leave and come back, those for a rank's own experts aside.
#[test]
fn the_expert_exchange_is_planned_in_host_memory() {
    let exchange = |sets: &[&str]| {
        let all = [&["topology.workers=4", "training.cells=4"][..], sets].concat();
        let spec = spec_of(TINY, &all);
        let positions = u64::from(spec.training.seq_len * spec.training.micro_batch_size);
        let choices = u64::from(spec.training.balance.target_top_k);
        let row = u64::from(spec.model.hidden_size) * 4 + 4;
        (memory_plan(&spec, Operands::Single).worker_exchange_bytes, positions * choices * row)
    };
    assert_eq!(exchange(&[]).0, 0, "a rank that holds all experts sends nothing");
    let (bytes, rows) = exchange(&["topology.expert_parallel=2"]);
    assert_eq!(bytes, 2 * rows / 2);
    let (bytes, rows) = exchange(&["topology.expert_parallel=4"]);
    assert_eq!(bytes, 2 * rows * 3 / 4);
    assert_eq!(exchange(&["topology.expert_parallel=4", "device.engine=drill"]).0, 0);
}

#[test]
fn a_model_without_tables_has_no_rows_to_plan() {
    let plan = plan(&spec_of(TINY, &["model.placement=per_layer"]));
    let memory = &plan.memory;
    assert_eq!((plan.tables, plan.table_rows, plan.lookups_per_step), (0, 0, 0));
    assert_eq!((memory.shard_all_rows_bytes, memory.row_record_bytes, memory.worker_rows_bytes), (0, 0, 0));
    assert!(memory.worker_bytes > 0);
}

#[test]
fn memory_of_devices_is_known() {
    let limit = |sets: &[&str]| spec_of(TINY, sets).device.memory_bytes;
    assert_eq!(limit(&[]), None);
    assert_eq!(limit(&["device.kind=cuda"]), Some(80 << 30));
    assert_eq!(limit(&["device.kind=cuda", "device.memory_gib=24"]), Some(24 << 30));
    assert_eq!(limit(&["device.memory_gib=0.5"]), Some(1 << 29));
    for value in ["0", "-1", "nan", "inf", "1e300"] {
        let message = refusal(&[&format!("device.memory_gib={value}")]);
        assert!(message.contains("device.memory_gib"), "{value}: {message}");
    }
}

/// With a limit on the CPU it holds there too, and every setting that is named does what it says.
#[test]
fn what_does_not_fit_is_cured_by_the_fewest_changes() {
    let base =
        ["training.seq_len=2048", "training.micro_batch_size=8", "topology.workers=2", "model.num_layers=6"];
    let needed = plan(&spec_of(TINY, &base)).memory.worker_host_bytes;
    let limited = |part: f64| {
        let mut spec = spec_of(TINY, &base);
        spec.device.memory_bytes = Some((needed as f64 * part) as u64);
        misfit(&spec, Operands::Single)
    };
    assert_eq!(limited(1.0), None);
    let mild = limited(0.9).unwrap();
    assert_eq!(
        (mild.needed_bytes, mild.cure.as_slice()),
        (needed, &["training.recompute=true".to_owned()][..])
    );
    let hard = limited(0.12).unwrap();
    assert!(hard.cure.len() >= 2 && hard.cured_bytes <= hard.limit_bytes, "{hard:?}");
    let impossible = limited(1e-6).unwrap();
    assert!(impossible.cure.is_empty(), "{impossible:?}");
}

#[test]
fn too_many_tokens_are_refused_by_their_keys() {
    for (sets, key) in [
        (
            &["training.seq_len=16777216", "training.micro_batch_size=65536"][..],
            "training.seq_len = 16777216",
        ),
        (&["training.seq_len=16777216", "training.micro_batch_size=127"], "row ids"),
        (
            &["training.seq_len=1048576", "training.cells=65536", "training.steps=1000000000000"],
            "training.steps = 1000000000000",
        ),
        (&["ngram.hash_vocab_size=127"], "ngram.hash_vocab_size is 127"),
    ] {
        let message = refusal(sets);
        assert!(message.contains(key), "{sets:?}: {message}");
    }
    // The ranges of the keys alone keep a step of a run file below the limit.
    let mut spec = spec_of(TINY, &[]);
    (spec.training.cells, spec.training.seq_len) = (1 << 31, 1_000_000);
    let message = super::check_tokens(&spec).unwrap_err();
    assert!(message.contains("training.cells = 2147483648"), "{message}");
}

#[test]
fn a_smaller_hash_vocabulary_needs_data_or_a_list_of_ignored_tokens() {
    spec_of(TINY, &["ngram.hash_vocab_size=126", "ngram.ignored_tokens=[126, 127]"]);
    spec_of(TINY, &["ngram.hash_vocab_size=97", "model.placement=per_layer"]);
    assert!(
        refusal(&["ngram.hash_vocab_size=126", "ngram.ignored_tokens=[3, 127]"]).contains("hash_vocab_size")
    );
}

#[test]
fn more_tables_than_pay_off_are_warned_of() {
    let warning = |sets: &[&str]| count_parameters(&spec_of(TINY, sets).model).table_share_warning();
    assert_eq!(warning(&[]), None);
    let many = warning(&["ngram.base_rows=100003"]).unwrap();
    assert!(many.contains("ngram.base_rows") && many.contains("2601.21204"), "{many}");
    assert_eq!(warning(&["ngram.base_rows=100003", "model.placement=per_layer"]), None);
}

/// A run for a device plans what lies on it apart from what lies in host memory.
#[test]
fn a_device_has_weights_for_products_and_activations() {
    let spec = spec_of(TINY, &["device.kind=cuda", "training.compute=bf16"]);
    assert_eq!((spec.device.kind, spec.training.determinism), (DeviceKind::Cuda, Determinism::Elastic));
    let memory = plan(&spec).memory;
    let part = |part: WorkerPart| memory.worker.iter().find(|p| p.part == part).copied().unwrap();
    let weights = part(WorkerPart::Weights);
    assert_eq!(weights.device_bytes * 4, weights.host_bytes * 6);
    assert_eq!((part(WorkerPart::Gradients).device_bytes, part(WorkerPart::Activations).host_bytes), (0, 0));
    assert_eq!(memory.worker_bytes, memory.worker_host_bytes + memory.worker_device_bytes);
}
