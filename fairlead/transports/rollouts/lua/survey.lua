#!lua flags=allow-oom
-- What the queue holds, at one moment. Returns {tasks whose open sending can still be claimed or is in a
-- worker's hands, outcomes as entry, task, entry, task …, bytes of the outcomes}.
check_types()
ensure_group()
local PAGE = 200

local function above(left, right)
  local left_ms, left_n = string.match(left, '^(%d+)%-(%d+)$')
  local right_ms, right_n = string.match(right, '^(%d+)%-(%d+)$')
  if left_ms ~= right_ms then
    return tonumber(left_ms) > tonumber(right_ms)
  end
  return tonumber(left_n) > tonumber(right_n)
end

local function each(stream, visit)
  local from = '-'
  while true do
    local page = redis.call('XRANGE', stream, from, '+', 'COUNT', PAGE)
    for _, entry in ipairs(page) do
      visit(entry[1], entry[2])
      from = '(' .. entry[1]
    end
    if #page < PAGE then
      return
    end
  end
end

local pending, from = {}, '-'
while true do
  local page = redis.call('XPENDING', PROMPTS, GROUP, from, '+', PAGE)
  for _, found in ipairs(page) do
    pending[found[1]] = true
    from = '(' .. found[1]
  end
  if #page < PAGE then
    break
  end
end
local last, live = last_delivered(), {}
each(PROMPTS, function(id)
  if pending[id] or above(id, last) then
    live[id] = true
  end
end)
local tasks = {}
local outstanding = redis.call('HKEYS', OUTSTANDING)
for _, task in ipairs(outstanding) do
  local open = stored_sending(task)
  if open and open.entry and live[open.entry] then
    tasks[#tasks + 1] = task
  end
end
local outcomes, bytes = {}, 0
each(ROLLOUTS, function(id, flat)
  local task = '-1'
  for i = 1, #flat, 2 do
    if flat[i] == 'task' then
      task = flat[i + 1]
    elseif flat[i] == 'outcome' then
      bytes = bytes + #flat[i + 1]
    end
  end
  outcomes[#outcomes + 1] = id
  outcomes[#outcomes + 1] = task
end)
return { tasks, outcomes, bytes }
