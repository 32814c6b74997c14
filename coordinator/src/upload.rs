//! A member's report of its part of a checkpoint, read. Parts are long: they are read on a thread of their own, never on the
//! task that owns the heartbeats.

use std::sync::Arc;

use polygram_checkpoint::Part;
use polygram_domain::control::MemberId;
use polygram_domain::{Generation, Step};
use polygram_proto::control::{Upload, UploadReport};

use crate::core::Uploaded;

/// What a member says of its part.
#[derive(Clone, Debug)]
pub(crate) struct ReadUpload {
    pub(crate) member: MemberId,
    pub(crate) generation: Generation,
    /// Updates applied in the checkpoint.
    pub(crate) step: Step,
    pub(crate) uploaded: Uploaded,
    /// Its part, where it was written.
    pub(crate) part: Option<Arc<Part>>,
}

impl ReadUpload {
    /// Reads a report. The error is a refusal, one sentence.
    pub(crate) async fn of(report: UploadReport) -> Result<ReadUpload, String> {
        let UploadReport { member, generation, step, upload } = report;
        let (uploaded, part) = match upload {
            Upload::NotWritten { reason } => (Uploaded::NotWritten(reason), None),
            Upload::Part { kind, json } => {
                let read = tokio::task::spawn_blocking(move || serde_json::from_str::<Part>(&json)).await;
                let read = read.map_err(|error| format!("the part of step {step} was not read: {error}"))?;
                let part = read.map_err(|error| format!("the part of step {step} is not legal: {error}"))?;
                if part.step != step {
                    return Err(format!(
                        "the report gives a part of step {} as one of step {step}",
                        part.step
                    ));
                }
                (Uploaded::Part(kind), Some(Arc::new(part)))
            }
        };
        Ok(ReadUpload { member, generation, step, uploaded, part })
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::CheckpointKind;

    use super::*;

    async fn read(step: u64, json: &str) -> Result<ReadUpload, String> {
        let upload = Upload::Part { kind: CheckpointKind::Commit, json: json.to_owned() };
        let (member, generation) = (MemberId(1), Generation(1));
        ReadUpload::of(UploadReport { member, generation, step: Step(step), upload }).await
    }

    #[tokio::test]
    async fn what_is_no_part_of_the_step_is_refused() {
        let part = r#"{"member":"worker-0","step":8,"objects":[],"cursor":null}"#;
        assert_eq!(read(8, part).await.unwrap().part.unwrap().member, "worker-0");
        assert!(read(9, part).await.unwrap_err().contains("a part of step 8 as one of step 9"));
        for json in ["", "{", "[1]"] {
            assert!(read(8, json).await.unwrap_err().contains("not legal"), "{json}");
        }
    }
}
