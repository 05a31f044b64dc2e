//! Tasks: parts of the work that several processes can share.

use serde::Serialize;
use tersor_models::{Upstream, shard_windows};

use super::{Action, Plan};

/// A part of the work of compression. Several processes can share the tasks of a plan; the bytes of the result do not depend on which process does
/// which task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Compress one matrix. The number is the index of its entry in [`Plan::entries`].
    Matrix(usize),
    /// Compress all matrices of the layer of this index, counted from 0, one site (an input of linear layers) after the other, with the inputs that
    /// the compressed layers before it compute.
    Layer(usize),
    /// Gather the statistics of the original network on one shard (a run of consecutive calibration windows) of this index, counted from 0.
    Statistics(usize),
    /// Find the principal directions of the activations of the original network, for the rotation of the network into them.
    Directions,
}

impl Plan {
    /// Returns the number of shards into which the calibration windows are divided. A shard is a run of consecutive windows, of
    /// [`shard_windows`] windows each, whose statistics are summed together.
    pub fn shards(&self) -> usize {
        self.windows[0].div_ceil(shard_windows(self.windows[1]))
    }

    /// Returns the tasks of the plan, in an order in which one process can do them. The index in this list is the number of a task.
    pub fn tasks(&self) -> Vec<Task> {
        let compressed = |i: &usize| matches!(self.entries[*i].action, Action::Compress(_));
        let matrices = || (0..self.entries.len()).filter(compressed);
        let needs_data = |i: &usize| self.entries[*i].needs().any_data();
        let chain = self.needs_site_data() && self.upstream() != Upstream::Original;
        let mut tasks = Vec::new();
        if self.rotation_needs_data() {
            tasks.push(Task::Directions);
        }
        if chain && let Some(network) = &self.network {
            let sites = network.sites();
            let fed = |i: &usize| {
                let here = |s: &&tersor_core::Site| s.layer.is_some();
                sites.iter().filter(here).any(|s| s.consumers.iter().any(|c| c.weight == self.entries[*i].name))
            };
            tasks.extend(matrices().filter(|i| !fed(i) && !needs_data(i)).map(Task::Matrix));
            tasks.extend((0..network.layers()).map(Task::Layer));
            tasks.extend(matrices().filter(|i| !fed(i) && needs_data(i)).map(Task::Matrix));
            return tasks;
        }
        if self.needs_site_data() && self.statistics.is_none() {
            tasks.extend((0..self.shards()).map(Task::Statistics));
        }
        tasks.extend(matrices().map(Task::Matrix));
        tasks
    }

    /// Returns the tasks in the order of [`tasks`](Self::tasks), each with its number, a description, and the tasks that must be done before it.
    pub fn task_summaries(&self) -> Vec<TaskSummary> {
        let tasks = self.tasks();
        let number = |task: Task| tasks.iter().position(|t| *t == task);
        let tables = self.network.as_ref().map(|n| n.embeddings()).unwrap_or_default();
        let statistics: Vec<usize> = (0..tasks.len()).filter(|i| matches!(tasks[*i], Task::Statistics(_))).collect();
        let last_layer = tasks.iter().rposition(|t| matches!(t, Task::Layer(_)));
        let summary = |(i, task): (usize, &Task)| {
            let new = |kind, after| TaskSummary { task: i, kind, tensor: None, layer: None, shard: None, after };
            match *task {
                Task::Matrix(e) => {
                    let entry = &self.entries[e];
                    let after = match (entry.needs().any_data(), last_layer) {
                        (false, _) => number(Task::Directions).into_iter().collect(),
                        (true, Some(last)) => vec![last],
                        (true, None) => statistics.clone(),
                    };
                    TaskSummary { tensor: Some(entry.name.clone()), ..new("matrix", after) }
                }
                Task::Layer(0) => {
                    let table = |name: &String| number(Task::Matrix(self.entry(name)?));
                    let after = number(Task::Directions).into_iter().chain(tables.iter().filter_map(table)).collect();
                    TaskSummary { layer: Some(0), ..new("layer", after) }
                }
                Task::Layer(l) => TaskSummary { layer: Some(l), ..new("layer", vec![i - 1]) },
                Task::Directions => new("directions", Vec::new()),
                Task::Statistics(s) => {
                    let shard = Some(format!("{}/{}", s + 1, self.shards()));
                    TaskSummary { shard, ..new("statistics", Vec::new()) }
                }
            }
        };
        tasks.iter().enumerate().map(summary).collect()
    }
}

/// The description of a task (a part of the work that one of several processes can do). In JSON, the command `tersor plan --json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TaskSummary {
    /// The number of the task, its index in [`Plan::tasks`].
    pub task: usize,
    /// The variant of [`Task`] in lower case: `matrix`, `layer`, `statistics` or `directions`.
    pub kind: &'static str,
    /// The name of the matrix, for a task of the kind `matrix`; None for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The index of the layer, counted from 0, for a task of the kind `layer`; None for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// The number of the shard of calibration windows, counted from 1, and the number of shards, as `I/N`, for a task of the kind `statistics`; None
    /// for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// The numbers of the tasks that must be done before this one.
    pub after: Vec<usize>,
}
