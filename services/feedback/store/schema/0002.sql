-- Prompts that were collected from the deployed policy.

CREATE TABLE collected (
  prompt TEXT PRIMARY KEY REFERENCES prompt (id) ON DELETE CASCADE,
  api_key TEXT NOT NULL,
  origin TEXT NOT NULL,
  request_id TEXT NOT NULL,
  weight_versions TEXT NOT NULL,
  metadata TEXT NOT NULL,
  masked TEXT NOT NULL,
  share REAL NOT NULL CHECK (share > 0 AND share <= 1),
  alike INTEGER NOT NULL,
  signature TEXT NOT NULL,
  screened REAL,
  screener TEXT REFERENCES person (id),
  reason TEXT
) STRICT;
CREATE INDEX collected_of_origin ON collected (origin);
CREATE INDEX collected_of_key ON collected (api_key);

-- Keyed digests by which a prompt finds those that are like it.
CREATE TABLE collected_mark (
  mark TEXT NOT NULL,
  prompt TEXT NOT NULL REFERENCES prompt (id) ON DELETE CASCADE,
  PRIMARY KEY (mark, prompt)
) STRICT;
CREATE INDEX mark_of_prompt ON collected_mark (prompt);

-- What became of all that was handed in, also of what was not kept.
CREATE TABLE collected_count (
  day TEXT NOT NULL,
  api_key TEXT NOT NULL,
  outcome TEXT NOT NULL,
  number INTEGER NOT NULL,
  PRIMARY KEY (day, api_key, outcome)
) STRICT;

-- Batches of the last day, so that one that is sent again counts once.
CREATE TABLE collected_batch (
  id TEXT PRIMARY KEY,
  at REAL NOT NULL
) STRICT;
