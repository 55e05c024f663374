-- Share of the tasks that a judge labels which people label too.
ALTER TABLE project ADD COLUMN audit_share REAL NOT NULL DEFAULT 0.1 CHECK (audit_share BETWEEN 0.05 AND 1);
