-- Append events: after the prefix the task's id, the kind, when (microseconds), and a JSON text, for each.
-- Those of a task without a record are dropped.

local ids, seen = {}, {}
for index = 2, #ARGV, 4 do
  local id = ARGV[index]
  if not seen[id] then
    seen[id] = true
    ids[#ids + 1] = id
  end
end

local tasks, tasks_by_id = open(ids)
for index = 2, #ARGV, 4 do
  local kind, data = ARGV[index + 1], ARGV[index + 3]
  local task = tasks_by_id[ARGV[index]]
  if task.known then
    if task.row[LISTED] == '' then
      list_events(task)
      task.changed = true
    end
    add_event(task, '["' .. kind .. '",' .. ARGV[index + 2] .. ',' .. data .. ']')
    if kind == 'progress' then
      task.row[PROGRESS] = data
      task.changed = true
    end
    task.kinds = task.kinds or {}
    task.kinds[kind] = true
  end
end

for _, task in ipairs(tasks) do
  if task.changed then
    call('SET', TASK .. task.id, pack(task.row), 'KEEPTTL')
  end
  for first = 1, task.events and #task.events or 0, 1000 do
    call('RPUSH', EVENTS .. task.id, unpack(task.events, first, math.min(first + 999, #task.events)))
  end
  if task.events and task.finished ~= '' then
    -- A list that begins now must go with its record.
    local left = call('TTL', TASK .. task.id)
    if left > 0 then
      call('EXPIRE', EVENTS .. task.id, left)
    end
  end
  for kind in pairs(task.kinds or {}) do
    call('PUBLISH', EVENTS .. task.id, kind)
  end
end
return #tasks
