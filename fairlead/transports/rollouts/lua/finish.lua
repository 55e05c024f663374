#!lua
-- Finishes or dead-letters a task. ARGV: task, incarnation, number, entry, outcome.
-- 1 if the sending was open and is now closed; 0 if it was closed: then its entry, which nobody needs any
-- more, is acknowledged and nothing else changes. The lease is not asked for: whoever is first wins.
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
