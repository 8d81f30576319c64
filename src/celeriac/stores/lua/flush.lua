-- Writing records back, after everything has been read: whatever Redis refuses, it refuses before the first change.

-- Seconds that a finished record outlives Celery's result, so that what removes it finds where it is listed.
local GRACE = 604800

-- Celery's result, as Celery's backend writes it with result_extended.
local function meta_of(row)
  local group, parent = row[GROUP], row[PARENT]
  return OURS .. quote(row.id)
    .. ', "status": ' .. quote(row[STATE])
    .. ', "result": ' .. (row.result or 'null')
    .. ', "traceback": ' .. quote(row.traceback)
    .. ', "children": ' .. (row[CHILDREN] or '[]')
    .. ', "date_done": ' .. quote(row.date_done)
    .. (group and ', "group_id": ' .. quote(group) or '')
    .. (parent and ', "parent_id": ' .. quote(parent) or '')
    .. ', "name": ' .. quote(row[NAME])
    .. ', "args": ' .. (row[ARGS] or 'null')
    .. ', "kwargs": ' .. (row[KWARGS] or 'null')
    .. ', "worker": ' .. quote(row[WORKER])
    .. ', "retries": ' .. (row[RETRIES] or '0')
    .. ', "queue": ' .. quote(row[QUEUE]) .. '}'
end

local function number_of(value)
  return string.format('%.0f', value)
end

-- Give numbers to the records that are new, in their order.
local function give_numbers(rows)
  local last, lead
  for _, row in ipairs(rows) do
    local enqueued = tonumber(row[ENQUEUED])
    if row.dated and not row.renumber and enqueued > tonumber(row[NUMBER]) then
      row.renumber = true
    end
    if row.renumber or row.dated then
      if not last then
        local found = call('HMGET', NUMBERS, 'last', 'lead')
        last, lead = tonumber(found[1]) or 0, tonumber(found[2]) or 0
      end
      if row.renumber then
        last = math.max(last + 1, enqueued or 0)
        set(row, NUMBER, number_of(last))
      end
      if enqueued then
        lead = math.max(lead, tonumber(row[NUMBER]) - enqueued)
      end
    end
  end
  if last then
    call('HSET', NUMBERS, 'last', number_of(last), 'lead', number_of(lead))
  end
end

local function write_fields(row)
  local key = TASK .. row.id
  if row.blanked then
    call('DEL', key, EVENTS .. row.id)
  end
  local values, gone, count = {}, nil, 0
  for field in pairs(row.changed) do
    local value = row[field]
    if value then
      values[count + 1], values[count + 2] = FIELDS[field], value
      count = count + 2
    else
      gone = gone or {}
      gone[#gone + 1] = FIELDS[field]
    end
  end
  if count > 0 then
    call('HSET', key, unpack(values))
  end
  if gone then
    call('HDEL', key, unpack(gone))
  end
end

local function list_under(row, kind, old, new)
  if old == new and not row.renumber then
    return
  end
  if old and old ~= new then
    call('ZREM', INDEX .. kind .. old, row.id)
  end
  if new then
    call('ZADD', INDEX .. kind .. new, row[NUMBER], row.id)
  end
end

local function write_indexes(row)
  if row.renumber then
    call('ZADD', INDEX, row[NUMBER], row.id)
  end
  list_under(row, ':state:', row.old_state, row[STATE])
  list_under(row, ':name:', row.old_name, row[NAME])
  list_under(row, ':queue:', row.old_queue, row[QUEUE])
  list_under(row, ':owner:', row.old_owner, row[OWNER])
end

-- From here on the record is kept for so many seconds, or for as long as it has not ended.
local function write_end(row, expires)
  local finish = row[FINISH]
  if finish then
    if finish ~= row.old_finish then
      call('ZADD', FINISHED, string.format('%.6f', finish / 1e6), row.id)
    end
    if row[STATE] == 'REVOKED' then
      call('ZADD', CANCELLED, call('TIME')[1], row.id)
    elseif row[CANCEL] then
      call('ZREM', CANCELLED, row.id)
    end
    if expires then
      call('EXPIRE', TASK .. row.id, expires + GRACE)
      call('EXPIRE', EVENTS .. row.id, expires + GRACE)
    end
  elseif row.old_finish then
    call('ZREM', FINISHED, row.id)
    call('PERSIST', TASK .. row.id)
    call('PERSIST', EVENTS .. row.id)
    if row[CANCEL] then
      call('ZADD', CANCELLED, call('TIME')[1], row.id)
    end
  end
  if row.uncancelled then
    call('ZREM', CANCELLED, row.id)
  end
end

local function tell(row, expires)
  if row.meta then
    local key, text = META .. row.id, meta_of(row)
    if expires and row[FINISH] then
      call('SET', key, text, 'EX', expires)
    else
      call('SET', key, text)
    end
    call('PUBLISH', key, text)
    return
  end
  if row.unwritten then
    call('DEL', META .. row.id)
  end
  call('PUBLISH', EVENTS .. row.id, 'state')
end

-- Write what has changed in these records. expires: seconds that a finished one is kept, nil for ever.
local function flush(rows, expires)
  give_numbers(rows)
  for _, row in ipairs(rows) do
    if row.changed then
      write_fields(row)
      write_indexes(row)
    end
    if row.events then
      call('RPUSH', EVENTS .. row.id, unpack(row.events))
    end
    if row.entered then
      write_end(row, expires)
      tell(row, expires)
    end
  end
end
