//! Tasks: parts of the work that several processes can share.

use serde::Serialize;
use tersor_llm::{Upstream, shard_windows};

use super::{Action, Plan};

/// A part of the work. Its output does not depend on which process does which task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Compress one matrix, given by the index of its entry.
    Matrix(usize),
    /// Compress all sites of a layer, with the compressed layers upstream.
    Layer(usize),
    /// Gather the statistics of one shard of windows in the original network.
    Statistics(usize),
    /// Find the principal directions of the original network, into which it is rotated.
    Directions,
}

impl Plan {
    /// Returns the number of shards of the statistics of the original network.
    pub fn shards(&self) -> usize {
        self.windows[0].div_ceil(shard_windows(self.windows[1]))
    }

    /// Returns the tasks in an order in which they can be done.
    pub fn tasks(&self) -> Vec<Task> {
        let compressed = |i: &usize| matches!(self.entries[*i].action, Action::Compress(_));
        let matrices = || (0..self.entries.len()).filter(compressed);
        let needs_data = |i: &usize| self.entries[*i].needs().any_data();
        let chain = self.needs_site_data() && self.upstream() == Upstream::Compressed;
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

    /// Returns the tasks with their numbers and dependencies.
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

/// A task of a plan, as `tersor plan --json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TaskSummary {
    /// Number of the task, from 0.
    pub task: usize,
    /// `matrix`, `layer`, `statistics` or `directions`.
    pub kind: &'static str,
    /// Name of the tensor, of a task for one matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// Index of the layer, of a task for a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// `I/N`, of a task for one shard of the statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// Numbers of the tasks that must be done before it.
    pub after: Vec<usize>,
}
