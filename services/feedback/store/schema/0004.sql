-- What a run has reported about its rounds, and when a person was paused.
CREATE TABLE round_report (
  project TEXT NOT NULL REFERENCES project (id),
  run TEXT NOT NULL,
  number INTEGER NOT NULL,
  body TEXT NOT NULL,
  at REAL NOT NULL,
  PRIMARY KEY (project, run, number)
) STRICT;

ALTER TABLE person ADD COLUMN paused REAL;
