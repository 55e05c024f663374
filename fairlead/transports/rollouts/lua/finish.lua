#!lua
-- Finish or dead-letter a task. ARGV: task, incarnation, number, entry, outcome.
-- Returns 1 if the sending was open and is now closed. Returns 0 if it was closed before; then its entry, which
-- is no longer needed, is acknowledged and nothing else changes. Does not check the lease: the first one wins.
local task, incarnation, number = digits(1, 'task'), digits(2, 'incarnation'), digits(3, 'number')
local entry, outcome = entry_id(4), payload(5, 'outcome')
check_types()
ensure_group()
if not open_failures(task, incarnation, number, entry) then
  acknowledge(entry)
  trim()
  return 0
end
close(task, incarnation, number, entry, outcome)
return 1
